/** Apple Data Compression: the byte-oriented LZ77 of old disk images (UDIF chunk kind 0x80000004, "UDCO"). */
import { ImageError } from '../error.js';

function corrupt(what: string): ImageError {
  return new ImageError('corrupt', `Invalid ADC data: ${what}`);
}

/**
 * Fills `into` from an ADC stream. There is no header and no end mark: three kinds of operations, told apart by the
 * first byte's top bits, until the output is full. Throws `corrupt` where the stream ends early, runs over `into`, or
 * refers to before its start.
 */
export function decodeAdc(packed: Uint8Array, into: Uint8Array): void {
  const end = packed.byteLength;
  const full = into.byteLength;
  let from = 0;
  let out = 0;
  while (out < full) {
    if (from >= end) throw corrupt('the stream is too short');
    const first = packed[from]!;
    let length: number;
    if ((first & 0x80) !== 0) {
      // 1LLLLLLL: L + 1 bytes follow as they are
      length = (first & 0x7f) + 1;
      if (from + 1 + length > end) throw corrupt('the stream is too short');
      if (out + length > full) throw corrupt('the stream is too long');
      into.set(packed.subarray(from + 1, from + 1 + length), out);
      from += 1 + length;
      out += length;
      continue;
    }
    let distance: number;
    if ((first & 0x40) !== 0) {
      // 01LLLLLL and a 16-bit distance: L + 4 bytes from distance + 1 back
      if (from + 3 > end) throw corrupt('the stream is too short');
      length = (first & 0x3f) + 4;
      distance = ((packed[from + 1]! << 8) | packed[from + 2]!) + 1;
      from += 3;
    } else {
      // 00LLLLDD and 8 more bits of distance: L + 3 bytes from distance + 1 back
      if (from + 2 > end) throw corrupt('the stream is too short');
      length = (first >> 2) + 3;
      distance = (((first & 3) << 8) | packed[from + 1]!) + 1;
      from += 2;
    }
    if (distance > out) throw corrupt('a match refers to before the start');
    if (out + length > full) throw corrupt('the stream is too long');
    // Byte by byte: source and target may overlap, which repeats.
    for (const stop = out + length; out < stop; out++) into[out] = into[out - distance]!;
  }
}
