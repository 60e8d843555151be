/** Values of JSON tokens as QEMU has them: strings in either quotes, numbers of 64 bits. */

/** What is wrong with a message, in QEMU's words. */
export class SyntaxFault extends Error {}

export type Json = null | boolean | number | bigint | string | Json[] | { [member: string]: Json };

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "'": "'",
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
};

/** @param token with its quotes. Throws SyntaxFault. */
export function stringValue(token: Uint8Array): string {
  let text: string;
  try {
    text = decoder.decode(token.subarray(1, token.length - 1));
  } catch {
    throw new SyntaxFault('invalid UTF-8 sequence in string');
  }
  if (!text.includes('\\')) return text;
  let value = '';
  let from = 0;
  for (let at = text.indexOf('\\'); at >= 0; at = text.indexOf('\\', from)) {
    value += text.slice(from, at);
    const letter = text[at + 1]!;
    if (letter === 'u') {
      const [characters, length] = unicodeEscape(text + String.fromCharCode(token[0]!), at);
      value += characters;
      from = at + length;
      continue;
    }
    const plain = ESCAPES[letter];
    if (plain === undefined) throw new SyntaxFault('invalid escape sequence in string');
    value += plain;
    from = at + 2;
  }
  return value + text.slice(from);
}

/** `\u` at `at`, and the second half of a pair after it: the characters, and how many of the text they take. */
function unicodeEscape(text: string, at: number): [string, number] {
  const unit = (from: number): number | undefined => {
    const digits = /^\\u([0-9a-f]{4})/i.exec(text.slice(from, from + 6))?.[1];
    return digits === undefined ? undefined : Number.parseInt(digits, 16);
  };
  const refused = (length: number) =>
    new SyntaxFault(`${text.slice(at, at + length)} is not a valid Unicode character`);
  const first = unit(at);
  if (first === undefined) throw refused(6);
  if (first < 0xd800 || first > 0xdfff) return [String.fromCharCode(first), 6];
  const second = unit(at + 6);
  const paired = first < 0xdc00 && second !== undefined && second >= 0xdc00 && second <= 0xdfff;
  if (!paired) throw refused(second === undefined ? 6 : 12);
  return [String.fromCharCode(first, second), 12];
}

/** Integers that a double cannot hold stay whole. Throws SyntaxFault for what is no number at all (`1e999`). */
export function numberValue(text: string): number | bigint {
  const value = Number(text);
  if (!Number.isFinite(value)) throw new SyntaxFault(`number out of range '${text.slice(0, 64)}'`);
  if (Number.isSafeInteger(value) || /[.eE]/.test(text) || text.length > 24) return value;
  const whole = BigInt(text);
  return whole >= -(1n << 63n) && whole < 1n << 64n ? whole : value;
}

/** The same value without big integers, as handlers take it. */
export function plain(value: Json): unknown {
  if (typeof value === 'bigint') return Number(value);
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, plain(member)]));
}
