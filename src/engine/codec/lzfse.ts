/**
 * LZFSE: LZ77 whose literals, lengths and distances are coded by finite-state entropy (tANS). A stream is a run of
 * blocks, each begun by a magic number: raw bytes, LZVN, or LZFSE proper with plain ("v1") or packed ("v2") tables.
 * Written from the format as published by its authors (github.com/lzfse/lzfse).
 */
import { ImageError } from '../error.js';
import { decodeLzvn } from './lzvn.js';
import { i32, struct, u16, u32, u64 } from './struct.js';

function corrupt(what: string): ImageError {
  return new ImageError('corrupt', `Invalid LZFSE data: ${what}`);
}

const MAGIC_END = 0x24787662; // bvx$
const MAGIC_RAW = 0x2d787662; // bvx-
const MAGIC_V1 = 0x31787662; // bvx1
const MAGIC_V2 = 0x32787662; // bvx2
const MAGIC_LZVN = 0x6e787662; // bvxn

/** The largest block that the format has. */
const MATCHES_PER_BLOCK = 10_000;
const LITERALS_PER_BLOCK = 4 * MATCHES_PER_BLOCK;

/** Symbols and states of the four coded alphabets, in the order of their frequency tables. */
const L_SYMBOLS = 20;
const M_SYMBOLS = 20;
const D_SYMBOLS = 64;
const LITERAL_SYMBOLS = 256;
const L_STATES = 64;
const M_STATES = 64;
const D_STATES = 256;
const LITERAL_STATES = 1024;
const FREQUENCIES = L_SYMBOLS + M_SYMBOLS + D_SYMBOLS + LITERAL_SYMBOLS;

const RAW_HEADER = struct('little', { magic: u32, rawBytes: u32 });
const LZVN_HEADER = struct('little', { magic: u32, rawBytes: u32, payloadBytes: u32 });

/** "Compressed block header with uncompressed tables", without the tables. */
const V1_FIXED = struct('little', {
  magic: u32,
  rawBytes: u32,
  payloadBytes: u32,
  literals: u32,
  matches: u32,
  literalPayload: u32,
  lmdPayload: u32,
  /** Bits of the last payload byte that are not used, negated. */
  literalBits: i32,
  literalState0: u16,
  literalState1: u16,
  literalState2: u16,
  literalState3: u16,
  lmdBits: i32,
  lState: u16,
  mState: u16,
  dState: u16,
});
/** The tables follow as 16-bit numbers, then two bytes of padding. */
const V1_TABLES = V1_FIXED.size;
const V1_SIZE = V1_TABLES + 2 * FREQUENCIES + 2;

/** "Compressed block header with compressed tables", without the tables: fields of 10 and 20 bits in three words. */
const V2_FIXED = struct('little', { magic: u32, rawBytes: u32, word0: u64, word1: u64, word2: u64 });

interface Header {
  readonly rawBytes: number;
  /** Bytes of header and tables. */
  readonly size: number;
  readonly literals: number;
  readonly matches: number;
  readonly literalPayload: number;
  readonly lmdPayload: number;
  readonly literalBits: number;
  readonly literalStates: readonly number[];
  readonly lmdBits: number;
  readonly lState: number;
  readonly mState: number;
  readonly dState: number;
}

/** What a length or distance symbol stands for: a base value, and so many more bits to add to it. */
const L_BITS = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3, 5, 8];
const M_BITS = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 5, 8, 11];
const D_BITS = Array.from({ length: D_SYMBOLS }, (_, symbol) => symbol >> 2);

/** Each symbol's values begin where those of the one before it end. */
function bases(bits: readonly number[]): number[] {
  let next = 0;
  return bits.map((count) => {
    const base = next;
    next += 2 ** count;
    return base;
  });
}

/** Decoder tables: one entry a state. `steps` holds delta << 16 | value bits << 8 | all bits to take. */
interface Table {
  readonly steps: Int32Array;
  readonly bases: Int32Array;
}

function newTable(states: number): Table {
  return { steps: new Int32Array(states), bases: new Int32Array(states) };
}

const LITERAL_BITS = new Array<number>(LITERAL_SYMBOLS).fill(0);
const LITERAL_BASES = Array.from({ length: LITERAL_SYMBOLS }, (_, symbol) => symbol);
const L_BASES = bases(L_BITS);
const M_BASES = bases(M_BITS);
const D_BASES = bases(D_BITS);

// Decoding is synchronous, so one set of scratch tables serves every call.
const literalTable = newTable(LITERAL_STATES);
const lTable = newTable(L_STATES);
const mTable = newTable(M_STATES);
const dTable = newTable(D_STATES);
const frequencies = new Uint16Array(FREQUENCIES);
const literalBytes = new Uint8Array(LITERALS_PER_BLOCK + 4);

/**
 * Spreads each symbol over as many consecutive states as its frequency says; the frequencies must add up to the number
 * of states. A state takes k or k - 1 bits so that every next state stays below `states`.
 */
function fillTable(table: Table, from: number, bits: readonly number[], values: readonly number[]): void {
  const states = table.steps.length;
  const log = 31 - Math.clz32(states);
  let state = 0;
  for (let symbol = 0; symbol < bits.length; symbol++) {
    const frequency = frequencies[from + symbol]!;
    if (frequency === 0) continue;
    if (state + frequency > states) throw corrupt('frequencies exceed the number of states');
    const valueBits = bits[symbol]!;
    const k = log - (31 - Math.clz32(frequency));
    const longer = ((2 * states) >> k) - frequency;
    for (let i = 0; i < frequency; i++, state++) {
      const stateBits = i < longer ? k : k - 1;
      const delta = i < longer ? ((frequency + i) << k) - states : (i - longer) << (k - 1);
      table.steps[state] = (delta << 16) | (valueBits << 8) | (stateBits + valueBits);
      table.bases[state] = values[symbol]!;
    }
  }
  if (state !== states) throw corrupt('frequencies do not add up to the number of states');
}

/** One frequency of a packed table: 2, 3, 5, 8 or 14 bits, told apart by the lowest four. */
function packedFrequency(bits: number): { readonly value: number; readonly length: number } {
  if ((bits & 1) === 0) return { value: (bits >> 1) & 1, length: 2 };
  if ((bits & 2) === 0) return { value: 2 + ((bits >> 2) & 1), length: 3 };
  if ((bits & 4) === 0) return { value: 4 + ((bits >> 3) & 3), length: 5 };
  if ((bits & 8) === 0) return { value: 8 + ((bits >> 4) & 0xf), length: 8 };
  return { value: 24 + ((bits >> 4) & 0x3ff), length: 14 };
}

function readPackedFrequencies(packed: Uint8Array): void {
  if (packed.byteLength === 0) {
    frequencies.fill(0);
    return;
  }
  let window = 0;
  let held = 0;
  let from = 0;
  for (let i = 0; i < FREQUENCIES; i++) {
    for (; held <= 16 && from < packed.byteLength; held += 8) window |= packed[from++]! << held;
    const { value, length } = packedFrequency(window);
    if (length > held) throw corrupt('the frequency tables are too short');
    frequencies[i] = value;
    window >>>= length;
    held -= length;
  }
  if (held >= 8 || from !== packed.byteLength) throw corrupt('the frequency tables have a wrong length');
}

function readV1(packed: Uint8Array, at: number): Header {
  if (at + V1_SIZE > packed.byteLength) throw corrupt('a block header is cut off');
  const fields = V1_FIXED.decode(packed, at);
  for (let i = 0, from = at + V1_TABLES; i < FREQUENCIES; i++, from += 2) {
    frequencies[i] = packed[from]! | (packed[from + 1]! << 8);
  }
  return {
    ...fields,
    size: V1_SIZE,
    literalStates: [fields.literalState0, fields.literalState1, fields.literalState2, fields.literalState3],
  };
}

function readV2(packed: Uint8Array, at: number): Header {
  if (at + V2_FIXED.size > packed.byteLength) throw corrupt('a block header is cut off');
  const { rawBytes, word0, word1, word2 } = V2_FIXED.decode(packed, at);
  const bits = (word: bigint, from: number, count: number) =>
    Number((word >> BigInt(from)) & ((1n << BigInt(count)) - 1n));
  const size = bits(word2, 0, 32);
  if (size < V2_FIXED.size || at + size > packed.byteLength) throw corrupt('a block header is cut off');
  readPackedFrequencies(packed.subarray(at + V2_FIXED.size, at + size));
  return {
    rawBytes,
    size,
    literals: bits(word0, 0, 20),
    literalPayload: bits(word0, 20, 20),
    matches: bits(word0, 40, 20),
    literalBits: bits(word0, 60, 3) - 7,
    literalStates: [0, 10, 20, 30].map((from) => bits(word1, from, 10)),
    lmdPayload: bits(word1, 40, 20),
    lmdBits: bits(word1, 60, 3) - 7,
    lState: bits(word2, 32, 10),
    mState: bits(word2, 42, 10),
    dState: bits(word2, 52, 10),
  };
}

function validate(header: Header): void {
  const { literals, matches, literalBits, lmdBits } = header;
  if (literals > LITERALS_PER_BLOCK || matches > MATCHES_PER_BLOCK) throw corrupt('a block is too large');
  if (literalBits < -7 || literalBits > 0 || lmdBits < -7 || lmdBits > 0) throw corrupt('wrong bit counts');
  if (
    header.literalStates.some((state) => state >= LITERAL_STATES) ||
    header.lState >= L_STATES ||
    header.mState >= M_STATES ||
    header.dState >= D_STATES
  ) {
    throw corrupt('a first state is out of range');
  }
}

/** The payload with room after it, so that four bytes can be read at any bit of it. */
let padded = new Uint8Array(64 * 1024);
let paddedView = new DataView(padded.buffer);

function pad(payload: Uint8Array): void {
  if (padded.byteLength < payload.byteLength + 4) {
    padded = new Uint8Array(payload.byteLength + 64 * 1024);
    paddedView = new DataView(padded.buffer);
  }
  padded.set(payload);
  padded.fill(0, payload.byteLength, payload.byteLength + 4);
}

/** Four interleaved streams of literals, read from the payload's end backwards. */
function decodeLiterals(payload: Uint8Array, header: Header): void {
  if (header.literals === 0) return;
  fillTable(literalTable, L_SYMBOLS + M_SYMBOLS + D_SYMBOLS, LITERAL_BITS, LITERAL_BASES);
  pad(payload);
  const view = paddedView;
  const { steps, bases: symbols } = literalTable;
  const states = Uint16Array.from(header.literalStates);
  let bit = 8 * payload.byteLength + header.literalBits;
  for (let i = 0; i < header.literals; i++) {
    const state = states[i & 3]!;
    const step = steps[state]!;
    literalBytes[i] = symbols[state]!;
    const count = step & 0xff;
    bit -= count;
    if (bit < 0) throw corrupt('the literals are too short');
    states[i & 3] = (step >> 16) + ((view.getUint32(bit >> 3, true) >>> (bit & 7)) & ((1 << count) - 1));
  }
}

/** Executes the block's (literal length, match length, distance) triples; returns where the output has got to. */
function decodeMatches(payload: Uint8Array, header: Header, into: Uint8Array, start: number): number {
  const end = start + header.rawBytes;
  let out = start;
  if (header.matches > 0) {
    fillTable(lTable, 0, L_BITS, L_BASES);
    fillTable(mTable, L_SYMBOLS, M_BITS, M_BASES);
    fillTable(dTable, L_SYMBOLS + M_SYMBOLS, D_BITS, D_BASES);
  }
  pad(payload);
  const view = paddedView;
  const { steps: lSteps, bases: lBases } = lTable;
  const { steps: mSteps, bases: mBases } = mTable;
  const { steps: dSteps, bases: dBases } = dTable;
  let { lState, mState, dState } = header;
  let bit = 8 * payload.byteLength + header.lmdBits;
  let literal = 0;
  let distance = 0;
  for (let left = header.matches; left > 0; left--) {
    // Each part is 23 bits at most, so that one 32-bit load holds it at any of the 8 bit positions.
    let step = lSteps[lState]!;
    let count = step & 0xff;
    bit -= count;
    if (bit < 0) throw corrupt('the matches are too short');
    let value = (view.getUint32(bit >> 3, true) >>> (bit & 7)) & ((1 << count) - 1);
    let valueBits = (step >> 8) & 0xff;
    const literals = lBases[lState]! + (value & ((1 << valueBits) - 1));
    lState = (step >> 16) + (value >>> valueBits);

    step = mSteps[mState]!;
    count = step & 0xff;
    bit -= count;
    if (bit < 0) throw corrupt('the matches are too short');
    value = (view.getUint32(bit >> 3, true) >>> (bit & 7)) & ((1 << count) - 1);
    valueBits = (step >> 8) & 0xff;
    const matched = mBases[mState]! + (value & ((1 << valueBits) - 1));
    mState = (step >> 16) + (value >>> valueBits);

    step = dSteps[dState]!;
    count = step & 0xff;
    bit -= count;
    if (bit < 0) throw corrupt('the matches are too short');
    value = (view.getUint32(bit >> 3, true) >>> (bit & 7)) & ((1 << count) - 1);
    valueBits = (step >> 8) & 0xff;
    const given = dBases[dState]! + (value & ((1 << valueBits) - 1));
    dState = (step >> 16) + (value >>> valueBits);
    if (given !== 0) distance = given; // 0: as before

    if (literal + literals > header.literals) throw corrupt('too few literals');
    if (out + literals + matched > end) throw corrupt('a block is longer than it says');
    if (literals > 32) {
      into.set(literalBytes.subarray(literal, literal + literals), out);
      out += literals;
      literal += literals;
    } else {
      for (const stop = out + literals; out < stop; out++, literal++) into[out] = literalBytes[literal]!;
    }
    if (matched === 0) continue;
    if (distance === 0 || distance > out) throw corrupt('a match refers to before the start');
    if (matched > 32 && distance >= matched) {
      into.copyWithin(out, out - distance, out - distance + matched);
      out += matched;
    } else {
      // Byte by byte: source and target may overlap, which repeats.
      for (const stop = out + matched; out < stop; out++) into[out] = into[out - distance]!;
    }
  }
  return out;
}

/** Fills `into` from a whole LZFSE stream, which must hold exactly that much. Throws `corrupt`. */
export function decodeLzfse(packed: Uint8Array, into: Uint8Array): void {
  const view = new DataView(packed.buffer, packed.byteOffset, packed.byteLength);
  let from = 0;
  let out = 0;
  for (;;) {
    if (from + 4 > packed.byteLength) throw corrupt('the stream is too short');
    const magic = view.getUint32(from, true);
    if (magic === MAGIC_END) break;
    const isRaw = magic === MAGIC_RAW;
    if (isRaw || magic === MAGIC_LZVN) {
      const fixed = isRaw ? RAW_HEADER : LZVN_HEADER;
      if (from + fixed.size > packed.byteLength) throw corrupt('a block header is cut off');
      const rawBytes = view.getUint32(from + 4, true);
      const payloadBytes = isRaw ? rawBytes : view.getUint32(from + 8, true);
      from += fixed.size;
      if (from + payloadBytes > packed.byteLength) throw corrupt('a block is cut off');
      if (out + rawBytes > into.byteLength) throw corrupt('the stream is too long');
      const payload = packed.subarray(from, from + payloadBytes);
      if (isRaw) into.set(payload, out);
      else decodeLzvn(payload, into, out, out + rawBytes);
      from += payloadBytes;
      out += rawBytes;
      continue;
    }
    if (magic !== MAGIC_V1 && magic !== MAGIC_V2) throw corrupt('unknown block');
    const header = magic === MAGIC_V1 ? readV1(packed, from) : readV2(packed, from);
    validate(header);
    from += header.size;
    const lmdAt = from + header.literalPayload;
    const end = lmdAt + header.lmdPayload;
    if (end > packed.byteLength) throw corrupt('a block is cut off');
    if (out + header.rawBytes > into.byteLength) throw corrupt('the stream is too long');
    decodeLiterals(packed.subarray(from, lmdAt), header);
    const reached = decodeMatches(packed.subarray(lmdAt, end), header, into, out);
    if (reached !== out + header.rawBytes) throw corrupt('a block is shorter than it says');
    out = reached;
    from = end;
  }
  if (out !== into.byteLength) throw corrupt('the stream is too short');
}
