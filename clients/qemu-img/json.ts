/** JSON as the reference prints it: four spaces, ASCII only, members in its hash table's order. */

import { orderedEntries, quote } from '../../src/protocol/dictionary.js';

export { orderedEntries, quote };

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
