/**
 * bzip2: blocks of up to 900 kB, run-length coded, Burrows-Wheeler transformed, moved to front and Huffman coded.
 * One whole stream in memory at a time, as disk images store it.
 */
import { ImageError } from '../error.js';

function corrupt(what: string): ImageError {
  return new ImageError('corrupt', `Invalid bzip2 data: ${what}`);
}

const BLOCK_UNIT = 100_000;
/** The six bytes before a block, and those before the stream's end, as two halves of 24 bits. */
const BLOCK_MAGIC = [0x314159, 0x265359] as const;
const END_MAGIC = [0x177245, 0x385090] as const;
const MAX_CODE_LENGTH = 20;
const FAST_BITS = 10;
const SLOW_SHIFT = MAX_CODE_LENGTH - FAST_BITS;
const GROUP_SIZE = 50;
/** A block has no use for more (900,000 / 50 and the end); what encoders write beyond is skipped, as libbz2 does. */
const MAX_SELECTORS = 18_002;
const RUN_A = 0;
const RUN_B = 1;

const CRC_TABLE = Int32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte << 24;
  for (let bit = 0; bit < 8; bit++) crc = crc < 0 ? (crc << 1) ^ 0x04c11db7 : crc << 1;
  return crc;
});

/** One Huffman code of a block. */
interface Code {
  /** By the next 10 bits: symbol << 5 | length; 0 where the code is longer or does not exist. */
  readonly fast: Uint16Array;
  /** By length: the codes below it are shorter or of that length (left-justified to 20 bits), and the first symbol. */
  readonly limits: Int32Array;
  readonly offsets: Int32Array;
  readonly symbols: Uint16Array;
}

/** A canonical code from its lengths. Codes that contradict each other are refused; missing ones are found on use. */
function buildCode(lengths: Uint8Array): Code {
  const fast = new Uint16Array(1 << FAST_BITS);
  const limits = new Int32Array(MAX_CODE_LENGTH + 1);
  const offsets = new Int32Array(MAX_CODE_LENGTH + 1);
  const symbols = new Uint16Array(lengths.length);
  let code = 0;
  let index = 0;
  for (let length = 1; length <= MAX_CODE_LENGTH; length++) {
    offsets[length] = index - code;
    for (let symbol = 0; symbol < lengths.length; symbol++) {
      if (lengths[symbol] !== length) continue;
      if (code >= 2 ** length) throw corrupt('contradictory code lengths');
      if (length <= FAST_BITS) {
        const first = code << (FAST_BITS - length);
        fast.fill((symbol << 5) | length, first, first + (1 << (FAST_BITS - length)));
      }
      symbols[index++] = symbol;
      code++;
    }
    limits[length] = code << (MAX_CODE_LENGTH - length);
    code <<= 1;
  }
  return { fast, limits, offsets, symbols };
}

/** A stream being read, with room behind it so that reading past the end is harmless until it is noticed. */
class Bits {
  readonly view: DataView;
  readonly end: number;
  at = 0;

  constructor(packed: Uint8Array) {
    // A group of 50 symbols may run on for 125 bytes before its position is checked.
    const padded = new Uint8Array(packed.byteLength + 256);
    padded.set(packed);
    this.view = new DataView(padded.buffer);
    this.end = packed.byteLength * 8;
  }

  /** Up to 24 bits, most significant first. */
  take(count: number): number {
    if (this.at + count > this.end) throw corrupt('the stream is too short');
    const value = (this.view.getUint32(this.at >>> 3) << (this.at & 7)) >>> (32 - count);
    this.at += count;
    return value;
  }

  take32(): number {
    const high = this.take(16);
    return (high << 16) | this.take(16) | 0;
  }
}

/** The bytes that occur in a block, as a 16 x 16 bitmap. */
function readAlphabet(bits: Bits): Uint8Array {
  const used: number[] = [];
  const rows = bits.take(16);
  for (let row = 0; row < 16; row++) {
    if ((rows & (0x8000 >> row)) === 0) continue;
    const columns = bits.take(16);
    for (let column = 0; column < 16; column++) {
      if ((columns & (0x8000 >> column)) !== 0) used.push(row * 16 + column);
    }
  }
  if (used.length === 0) throw corrupt('a block without symbols');
  return Uint8Array.from(used);
}

/** Which code each group of 50 symbols uses, moved to front and in unary. */
function readSelectors(bits: Bits, codes: number): Uint8Array {
  const count = bits.take(15);
  if (count === 0) throw corrupt('a block without selectors');
  const order = Array.from({ length: codes }, (_, code) => code);
  const selectors = new Uint8Array(Math.min(count, MAX_SELECTORS));
  for (let i = 0; i < count; i++) {
    let place = 0;
    while (bits.take(1) === 1) {
      if (++place >= codes) throw corrupt('a selector is out of range');
    }
    const [code] = order.splice(place, 1);
    order.unshift(code!);
    if (i < MAX_SELECTORS) selectors[i] = code!;
  }
  return selectors;
}

function readCode(bits: Bits, symbols: number): Code {
  const lengths = new Uint8Array(symbols);
  let length = bits.take(5);
  for (let symbol = 0; symbol < symbols; symbol++) {
    for (;;) {
      if (length < 1 || length > MAX_CODE_LENGTH) throw corrupt('a code length is out of range');
      if (bits.take(1) === 0) break;
      length += bits.take(1) === 0 ? 1 : -1;
    }
    lengths[symbol] = length;
  }
  return buildCode(lengths);
}

/** Huffman, run lengths of zeros and move-to-front: fills the low bytes of `table`, returns how many. */
function readSymbols(bits: Bits, blockSize: number, table: Uint32Array): number {
  const front = readAlphabet(bits);
  const endOfBlock = front.length + 1;
  const codeCount = bits.take(3);
  if (codeCount < 2 || codeCount > 6) throw corrupt('a wrong number of codes');
  const selectors = readSelectors(bits, codeCount);
  const codes = Array.from({ length: codeCount }, () => readCode(bits, front.length + 2));

  const { view, end } = bits;
  let { at } = bits;
  let filled = 0;
  let run = 0;
  let runUnit = 1;
  for (const selector of selectors) {
    if (at > end) throw corrupt('the stream is too short');
    const { fast, limits, offsets, symbols } = codes[selector]!;
    for (let left = GROUP_SIZE; left > 0; left--) {
      const window = (view.getUint32(at >>> 3) << (at & 7)) >>> (32 - MAX_CODE_LENGTH);
      const entry = fast[window >>> SLOW_SHIFT]!;
      let symbol: number;
      if (entry !== 0) {
        at += entry & 0x1f;
        symbol = entry >>> 5;
      } else {
        let length = FAST_BITS + 1;
        while (length <= MAX_CODE_LENGTH && window >= limits[length]!) length++;
        if (length > MAX_CODE_LENGTH) throw corrupt('an unknown code');
        at += length;
        symbol = symbols[(window >>> (MAX_CODE_LENGTH - length)) + offsets[length]!]!;
      }
      if (symbol <= RUN_B) {
        // A run's length in bijective base 2, least digit first.
        run += symbol === RUN_A ? runUnit : 2 * runUnit;
        runUnit *= 2;
        if (run > blockSize) throw corrupt('a block is too long');
        continue;
      }
      if (run > 0) {
        if (filled + run > blockSize) throw corrupt('a block is too long');
        table.fill(front[0]!, filled, filled + run);
        filled += run;
        run = 0;
        runUnit = 1;
      }
      if (symbol === endOfBlock) {
        if (at > end) throw corrupt('the stream is too short');
        bits.at = at;
        return filled;
      }
      if (filled >= blockSize) throw corrupt('a block is too long');
      const place = symbol - 1;
      const byte = front[place]!;
      if (place < 16) for (let i = place; i > 0; i--) front[i] = front[i - 1]!;
      else front.copyWithin(1, 0, place);
      front[0] = byte;
      table[filled++] = byte;
    }
  }
  throw corrupt('a block does not end');
}

/** Links each position of the last column to the one that follows it: `next << 8 | byte`. */
function invertTransform(table: Uint32Array, length: number): void {
  const starts = new Int32Array(256);
  for (let i = 0; i < length; i++) starts[table[i]! & 0xff]!++;
  for (let byte = 0, sum = 0; byte < 256; byte++) {
    const count = starts[byte]!;
    starts[byte] = sum;
    sum += count;
  }
  for (let i = 0; i < length; i++) table[starts[table[i]! & 0xff]!++]! |= i << 8;
}

/**
 * Follows the links and undoes the first run-length coding (four equal bytes are followed by a count of more). Returns
 * the output position and the block's checksum.
 */
function writeBlock(table: Uint32Array, length: number, origin: number, into: Uint8Array, start: number) {
  const full = into.byteLength;
  let out = start;
  let crc = -1;
  let link = table[origin]! >>> 8;
  let run = 0;
  let previous = -1;
  for (let i = 0; i < length; i++) {
    const entry = table[link]!;
    link = entry >>> 8;
    const byte = entry & 0xff;
    if (run === 4) {
      if (out + byte > full) throw corrupt('the stream is too long');
      into.fill(previous, out, out + byte);
      out += byte;
      for (let left = byte; left > 0; left--) crc = (crc << 8) ^ CRC_TABLE[(crc >>> 24) ^ previous]!;
      run = 0;
      continue;
    }
    if (out >= full) throw corrupt('the stream is too long');
    run = byte === previous ? run + 1 : 1;
    previous = byte;
    into[out++] = byte;
    crc = (crc << 8) ^ CRC_TABLE[(crc >>> 24) ^ byte]!;
  }
  return { out, crc: ~crc };
}

/** Fills `into` from a bzip2 stream, which must hold exactly that much; bytes after its end are ignored. Throws `corrupt`. */
export function decodeBzip2(packed: Uint8Array, into: Uint8Array): void {
  const bits = new Bits(packed);
  if (bits.take(24) !== 0x425a68) throw corrupt('no stream header');
  const level = bits.take(8) - 0x30;
  if (level < 1 || level > 9) throw corrupt('a wrong block size');
  const blockSize = level * BLOCK_UNIT;
  // No block that fits in `into` has more symbols than that and one count after every four: save memory on small ones.
  const table = new Uint32Array(Math.min(blockSize, Math.ceil((into.byteLength * 5) / 4) + 4));
  let out = 0;
  let combined = 0;
  for (;;) {
    const high = bits.take(24);
    const low = bits.take(24);
    if (high === END_MAGIC[0] && low === END_MAGIC[1]) break;
    if (high !== BLOCK_MAGIC[0] || low !== BLOCK_MAGIC[1]) throw corrupt('no block header');
    const crc = bits.take32();
    // Blocks that bzip2 before 0.9.5 had scrambled; no disk image tool ever wrote them.
    if (bits.take(1) !== 0) throw corrupt('a randomised block');
    const origin = bits.take(24);
    const length = readSymbols(bits, table.length, table);
    if (origin >= length) throw corrupt('a block starts out of range');
    invertTransform(table, length);
    const block = writeBlock(table, length, origin, into, out);
    if (block.crc !== crc) throw corrupt('a block has a wrong checksum');
    combined = ((combined << 1) | (combined >>> 31)) ^ crc;
    out = block.out;
  }
  if (bits.take32() !== combined) throw corrupt('the stream has a wrong checksum');
  if (out !== into.byteLength) throw corrupt('the stream is too short');
}
