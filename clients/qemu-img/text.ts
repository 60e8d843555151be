/** The reference's ways to print numbers. */

const UNITS = ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei'];

/** `64 MiB`, `1.46 GiB`, `197 B`: three digits, and the next unit from 1000 on. */
export function sizeText(bytes: number): string {
  let unit = 0;
  while (unit < UNITS.length - 1 && bytes >= 1000 * 1024 ** unit) unit++;
  return `${threeDigits(bytes, 1024 ** unit)} ${UNITS[unit]}B`;
}

/** C's `%0.3g` of bytes/unit, which is at least 1000/1024 or zero; a half is rounded to even, as C does and JavaScript does not. */
function threeDigits(bytes: number, unit: number): string {
  const value = bytes / unit;
  const decimals = value < 1 ? 3 : value < 10 ? 2 : value < 100 ? 1 : 0;
  const scaled = BigInt(bytes) * 10n ** BigInt(decimals);
  const divisor = BigInt(unit);
  let digits = scaled / divisor;
  const twice = (scaled % divisor) * 2n;
  if (twice > divisor || (twice === divisor && digits % 2n === 1n)) digits++;
  if (digits === 1000n && decimals === 0) return '1e+03';
  const text = digits.toString().padStart(decimals + 1, '0');
  if (decimals === 0) return text;
  return `${text.slice(0, -decimals)}.${text.slice(-decimals)}`.replace(/\.?0+$/, '');
}

/** C's `%#-16llx`: `0x200` or `0`, filled with spaces to 16 columns. */
export function hexColumn(value: number): string {
  return (value === 0 ? '0' : `0x${value.toString(16)}`).padEnd(16);
}

/** Local time as `2026-01-31 13:34:18`; `seconds` since 1970. */
export function dateText(seconds: number): string {
  const date = new Date(seconds * 1000);
  if (Number.isNaN(date.getTime())) return '';
  const two = (value: number) => String(value).padStart(2, '0');
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}
