/** What of a job's parameters may be kept on the disk: names, sizes and switches, nothing that may hold a secret. */

const MAX_TEXT = 4096;
const MAX_BYTES = 8192;
/** Never kept: objects hold keys and passwords, option strings may. */
const LEFT_OUT = new Set(['objects', 'image-opts']);
const SECRET = /secret|passw|passphrase|token|credential|^key$|-key$/i;

export function withoutSecrets(params: unknown): unknown {
  const kept = keep(params);
  return JSON.stringify(kept)?.length > MAX_BYTES ? {} : kept;
}

function keep(value: unknown): unknown {
  if (typeof value === 'string') return text(value);
  if (Array.isArray(value)) return value.map(keep);
  if (typeof value !== 'object' || value === null) return value;
  const members = Object.entries(value).filter(([name]) => !LEFT_OUT.has(name) && !SECRET.test(name));
  return Object.fromEntries(members.map(([name, inner]) => [name, keep(inner)]));
}

function text(value: string): string {
  // Options in a filename may be anything; a URL may name a user with a password.
  if (value.startsWith('json:')) return 'json:...';
  return value.slice(0, MAX_TEXT).replace(/\/\/[^/@\s]*@/g, '//...@');
}
