/**
 * CRC-32C (Castagnoli): polynomial 0x1EDC6F41, reflected, as in RFC 3720 appendix B.4. Eight bytes a step, by a table for
 * each of them.
 */

/** The polynomial with its bits reversed. */
const POLYNOMIAL = 0x82f63b78;
const LANES = 8;

let tables: Uint32Array | undefined;

/** LANES tables of 256 entries: lane n is what a byte does to the remainder n bytes further on. */
function makeTables(): Uint32Array {
  const made = new Uint32Array(LANES * 256);
  for (let byte = 0; byte < 256; byte++) {
    let remainder = byte;
    for (let bit = 0; bit < 8; bit++) remainder = (remainder >>> 1) ^ (remainder & 1 ? POLYNOMIAL : 0);
    made[byte] = remainder;
  }
  for (let at = 256; at < made.length; at++) {
    const before = made[at - 256]!;
    made[at] = (before >>> 8) ^ made[before & 0xff]!;
  }
  return made;
}

/** The checksum of the bytes; `before` is that of the bytes before them, where the data comes in pieces. */
export function crc32c(bytes: Uint8Array, before = 0): number {
  tables ??= makeTables();
  const t = tables;
  let crc = ~before;
  let at = 0;
  for (const stop = bytes.length - (bytes.length % LANES); at < stop; at += LANES) {
    crc ^= bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);
    crc =
      t[0x700 | (crc & 0xff)]! ^
      t[0x600 | ((crc >>> 8) & 0xff)]! ^
      t[0x500 | ((crc >>> 16) & 0xff)]! ^
      t[0x400 | (crc >>> 24)]! ^
      t[0x300 | bytes[at + 4]!]! ^
      t[0x200 | bytes[at + 5]!]! ^
      t[0x100 | bytes[at + 6]!]! ^
      t[bytes[at + 7]!]!;
  }
  for (; at < bytes.length; at++) crc = (crc >>> 8) ^ t[(crc ^ bytes[at]!) & 0xff]!;
  return ~crc >>> 0;
}
