/** QEMU's option-string and size syntax: shared by the command line, `-o` strings and `driver=...` strings. No imports. */

/** Sizes beyond what a double holds exactly cannot be an image that imgd handles (8 PiB). */
const MAX_SIZE = Number.MAX_SAFE_INTEGER;

const SUFFIX: Readonly<Record<string, number>> = {
  b: 1,
  k: 2 ** 10,
  m: 2 ** 20,
  g: 2 ** 30,
  t: 2 ** 40,
  p: 2 ** 50,
  e: 2 ** 60,
};

/**
 * A size in bytes: decimal with an optional fraction, or hexadecimal without suffix, and a suffix b, k, M, G, T, P, E in
 * either case (powers of 1024). Undefined where the text is not a size, NaN where it is beyond 2^53-1 or a negative number.
 */
export function parseSize(text: string, most = MAX_SIZE): number | undefined {
  const hex = /^\s*0x([0-9a-f]+)$/i.exec(text);
  if (hex) {
    const value = Number(BigInt(`0x${hex[1]!}`));
    return value > most ? Number.NaN : value;
  }
  if (/^\s*-\d+$/.test(text)) return Number.NaN;
  const match = /^\s*\+?(?=\.?\d)(\d*)(\.\d*)?([bkmgtpe])?$/i.exec(text);
  if (!match) return undefined;
  const [, whole, fraction, suffix] = match;
  const scale = SUFFIX[(suffix ?? 'b').toLowerCase()]!;
  const hasFraction = fraction !== undefined && Number(`0${fraction}0`) !== 0;
  if (hasFraction && scale === 1) return undefined;
  const total = BigInt(whole || '0') * BigInt(scale);
  let value = Number(total);
  if (hasFraction) value += Math.floor(Number(`0${fraction}`) * scale);
  return value > most ? Number.NaN : value;
}

/**
 * Splits `a=b,c=d` into pairs in order; `,,` is a literal comma. A word without `=` means `word=on`, and `noword` means
 * `word=off`; the first such word is the value of `implied` where that is given (`-f` style strings: `secret,id=x`).
 * `warn` is told of the others, as QEMU has it where such words are old use.
 */
export function splitOptions(
  text: string,
  implied?: string,
  warn?: (text: string) => void,
): [string, string][] {
  const pairs: [string, string][] = [];
  let at = 0;
  let first = true;
  while (at < text.length) {
    let word = '';
    for (; at < text.length; at++) {
      if (text[at] === ',') {
        if (text[at + 1] !== ',') break;
        at++;
      }
      word += text[at];
    }
    at++;
    const equals = word.indexOf('=');
    if (equals >= 0) pairs.push([word.slice(0, equals), word.slice(equals + 1)]);
    else if (first && implied !== undefined) pairs.push([implied, word]);
    else if (word !== '') {
      const pair = shortForm(word);
      warn?.(shortFormWarning(word, pair));
      pairs.push(pair);
    }
    first = false;
  }
  return pairs;
}

/** What a word without `=` means. */
export function shortForm(word: string): [name: string, value: 'on' | 'off'] {
  return word.startsWith('no') ? [word.slice(2), 'off'] : [word, 'on'];
}

export function shortFormWarning(word: string, [name, value]: readonly [string, string]): string {
  return `short-form boolean option '${word}' deprecated\nPlease use ${name}=${value} instead`;
}
