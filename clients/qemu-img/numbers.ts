/** Numbers on the command line, with the reference's words for bad ones. */
import { parseSize } from '../../src/protocol/options.js';
import { Exit } from './errors.js';

/** INT64_MAX, as the reference prints it; what is beyond 2^53-1 but below this is no image that imgd can handle. */
const LARGEST = 9223372036854775807n;

/**
 * A size (see parseSize) between `min` and `max`; `what` names it in errors. Infinity for a number that the reference
 * takes and a double cannot hold.
 */
export function parseNumber(what: string, text: string, min = 0, max = Number.POSITIVE_INFINITY): number {
  const value = parseSize(text);
  if (value === undefined) throw new Exit(1, `Invalid ${what} specified: '${text}'.`);
  const outside = Number.isNaN(value) && (exceedsInt64(text) || max !== Number.POSITIVE_INFINITY);
  if (outside || value < min || value > max) {
    const most = max === Number.POSITIVE_INFINITY ? LARGEST.toString() : String(max);
    throw new Exit(1, `Invalid ${what} specified. Must be between ${min} and ${most}.`);
  }
  return Number.isNaN(value) ? Number.POSITIVE_INFINITY : value;
}

/** True for a size text that parseSize found out of range, and that is so for 63 bits as well. */
function exceedsInt64(text: string): boolean {
  const match = /^\s*\+?(?:0x([0-9a-f]+)|(\d*)(\.\d*)?([bkmgtpe])?)$/i.exec(text);
  if (match === null) return true;
  if (match[1] !== undefined) return BigInt(`0x${match[1]}`) > LARGEST;
  const power = 'bkmgtpe'.indexOf((match[4] ?? 'b').toLowerCase());
  return BigInt(match[2] || '0') * 1024n ** BigInt(power) > LARGEST;
}

/** The exact value of a size text that parseNumber has taken: whole numbers only where it is beyond 2^53-1. */
export function exactSize(text: string): bigint {
  const hex = /^\s*(0x[0-9a-f]+)$/i.exec(text);
  if (hex !== null) return BigInt(hex[1]!);
  const match = /^\s*\+?(\d*)(\.\d*)?([bkmgtpe])?$/i.exec(text)!;
  const scale = 1024n ** BigInt('bkmgtpe'.indexOf((match[3] ?? 'b').toLowerCase()));
  const fraction = Number(`0${match[2] ?? ''}0`) * Number(scale);
  return BigInt(match[1] || '0') * scale + BigInt(Math.floor(fraction));
}

/** As parseNumber for a count, which takes no suffix and no fraction, and is octal behind a zero. */
export function parsePlainNumber(
  what: string,
  text: string,
  min: number,
  max: number | bigint = LARGEST,
): number {
  const match = /^\s*([+-]?)(0x[0-9a-f]+|0[0-7]*|[1-9]\d*)$/i.exec(text);
  if (match === null) throw new Exit(1, `Invalid ${what} specified: '${text}'.`);
  const digits = BigInt(match[2]!.replace(/^0(?=\d)/, '0o'));
  const value = match[1] === '-' ? -digits : digits;
  if (value < min || value > max) {
    throw new Exit(1, `Invalid ${what} specified. Must be between ${min} and ${max}.`);
  }
  return Number(value);
}

/** As C prints a number with two places: what is just between two goes to the even one. */
export function twoPlaces(value: number): string {
  const exact = value * 100;
  const below = Math.floor(exact);
  const up = exact - below > 0.5 || (exact - below === 0.5 && below % 2 === 1);
  return ((below + Number(up)) / 100).toFixed(2);
}
