/** The order in which QEMU's dictionaries give their members: JSON texts that are compared with its own need it. */

const BUCKETS = 512;

/** The bucket that a member's name has. Hash: TDB's, a multiply-and-shift over the bytes of the name. */
function bucket(name: string): number {
  let value = Math.imul(0x238f13af, name.length);
  for (let i = 0; i < name.length; i++) value = (value + (name.charCodeAt(i) << ((i * 5) % 24))) | 0;
  return ((Math.imul(1103515243, value) + 12345) >>> 0) % BUCKETS;
}

/**
 * The members that are there, first bucket to last. The one known pair in one bucket (`children` and
 * `backing-filename-format`) comes in descending order of name.
 */
export function orderedEntries(object: Readonly<Record<string, unknown>>): [string, unknown][] {
  return Object.entries(object)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => ({ name, value, bucket: bucket(name) }))
    .sort((a, b) => a.bucket - b.bucket || (a.name < b.name ? 1 : -1))
    .map(({ name, value }) => [name, value]);
}

const SHORT: Readonly<Record<string, string>> = {
  '"': '\\"',
  '\\': '\\\\',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
};

/** A JSON string with everything outside printable ASCII escaped, hexadecimal digits in upper case. */
export function quote(text: string): string {
  const escaped = text.replace(/["\\]|[^ -~]/g, (unit) => {
    const code = unit.charCodeAt(0).toString(16).toUpperCase();
    return SHORT[unit] ?? `\\u${code.padStart(4, '0')}`;
  });
  return `"${escaped}"`;
}

/** On one line, as in `json:` names. */
export function flatJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(flatJson).join(', ')}]`;
  if (typeof value === 'object' && value !== null) {
    const members = orderedEntries(value as Record<string, unknown>);
    return `{${members.map(([name, member]) => `${quote(name)}: ${flatJson(member)}`).join(', ')}}`;
  }
  return typeof value === 'string' ? quote(value) : String(value);
}
