/** JSON as the reference prints it: four spaces, ASCII only, members in its hash table's order. */

/**
 * The bucket, of 512, that a member's name has in the reference's dictionaries, which are printed from the first bucket
 * to the last. Hash: TDB's, a multiply-and-shift over the bytes of the name.
 */
function bucket(name: string): number {
  let value = Math.imul(0x238f13af, name.length);
  for (let i = 0; i < name.length; i++) value = (value + (name.charCodeAt(i) << ((i * 5) % 24))) | 0;
  return ((Math.imul(1103515243, value) + 12345) >>> 0) % 512;
}

/**
 * The members that are there, in printing order. The one known pair in one bucket (`children` and
 * `backing-filename-format`) is printed in descending order of name.
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

/** Without a line end. */
export function prettyJson(value: unknown, indent = 0): string {
  const inner = ' '.repeat(4 * (indent + 1));
  const outer = ' '.repeat(4 * indent);
  const block = (open: string, close: string, lines: readonly string[]) =>
    `${open}\n${lines.map((line) => inner + line).join(',\n')}${lines.length > 0 ? '\n' : ''}${outer}${close}`;
  if (Array.isArray(value)) {
    return block(
      '[',
      ']',
      value.map((each) => prettyJson(each, indent + 1)),
    );
  }
  if (typeof value === 'object' && value !== null) {
    const entries = orderedEntries(value as Record<string, unknown>);
    return block(
      '{',
      '}',
      entries.map(([name, member]) => `${quote(name)}: ${prettyJson(member, indent + 1)}`),
    );
  }
  return typeof value === 'string' ? quote(value) : String(value);
}
