/**
 * LZVN, the byte-oriented LZ77 that LZFSE streams use for small blocks. Every operation has a one-byte opcode that says
 * how many literal bytes follow it (L), how many are then repeated (M), and from how far back (D).
 */
import { ImageError } from '../error.js';

function corrupt(what: string): ImageError {
  return new ImageError('corrupt', `Invalid LZVN data: ${what}`);
}

/** The end-of-stream opcode (6) is followed by seven bytes of padding. */
const END_OF_STREAM_BYTES = 8;

/**
 * Decodes one block: `packed` is exactly its payload, which must produce exactly the bytes from `start` to `end` of
 * `into`; matches may reach back to the beginning of `into`. Throws `corrupt`.
 */
export function decodeLzvn(packed: Uint8Array, into: Uint8Array, start: number, end: number): void {
  const limit = packed.byteLength;
  let from = 0;
  let out = start;
  let distance = 0;
  for (;;) {
    if (from >= limit) throw corrupt('the stream is too short');
    const opcode = packed[from]!;
    let literals = 0;
    let matched = 0;
    const group = opcode >> 4;
    if (group === 0xf) {
      // 1111MMMM, or 11110000 MMMMMMMM for M + 16: repeat from the previous distance
      if (opcode === 0xf0) {
        matched = (packed[from + 1] ?? 0) + 16;
        from += 2;
      } else {
        matched = opcode & 0xf;
        from += 1;
      }
    } else if (group === 0xe) {
      // 1110LLLL, or 11100000 LLLLLLLL for L + 16: literals only
      if (opcode === 0xe0) {
        literals = (packed[from + 1] ?? 0) + 16;
        from += 2;
      } else {
        literals = opcode & 0xf;
        from += 1;
      }
    } else if (group === 0xa || group === 0xb) {
      // 101LLMMM DDDDDDMM DDDDDDDD: M + 3, 14 bits of distance
      const low = packed[from + 1] ?? 0;
      literals = (opcode >> 3) & 3;
      matched = (((opcode & 7) << 2) | (low & 3)) + 3;
      distance = (low >> 2) | ((packed[from + 2] ?? 0) << 6);
      from += 3;
    } else if (group === 0x7 || group === 0xd) {
      throw corrupt('undefined opcode');
    } else {
      // LLMMMxxx: M + 3, and the low three bits say how the distance is given
      literals = opcode >> 6;
      matched = ((opcode >> 3) & 7) + 3;
      const form = opcode & 7;
      if (form === 7) {
        distance = (packed[from + 1] ?? 0) | ((packed[from + 2] ?? 0) << 8);
        from += 3;
      } else if (form < 6) {
        distance = (form << 8) | (packed[from + 1] ?? 0);
        from += 2;
      } else if (literals > 0) {
        from += 1; // the previous distance
      } else if (opcode === 0x06) {
        if (from + END_OF_STREAM_BYTES !== limit || out !== end)
          throw corrupt('the block ends in a wrong place');
        return;
      } else if (opcode === 0x0e || opcode === 0x16) {
        from += 1; // no operation
        continue;
      } else {
        throw corrupt('undefined opcode');
      }
    }
    // What was read as 0 beyond the end makes no difference: the next opcode would be missing.
    if (from + literals > limit) throw corrupt('the stream is too short');
    if (out + literals + matched > end) throw corrupt('the stream is too long');
    for (const stop = from + literals; from < stop; from++, out++) into[out] = packed[from]!;
    if (matched > 0) {
      if (distance === 0 || distance > out) throw corrupt('a match refers to before the start');
      for (const stop = out + matched; out < stop; out++) into[out] = into[out - distance]!;
    }
  }
}
