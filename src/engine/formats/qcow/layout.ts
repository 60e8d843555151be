/**
 * qcow version 1 on disk. Sources: M. McLoughlin, "The QCOW Image Format" (sections "The Header", "2-Level Lookups",
 * "Compression"), and what the reference accepts. All numbers are big-endian. Raw table entries do not leave this file.
 */
import { struct, u8, u16, u32, u64 } from '../../codec/struct.js';

export { MAGIC, VERSION } from './probe.js';

/** Section "The Header". */
export const QcowHeader = struct('big', {
  magic: u32, // QFI\xfb
  version: u32, // 1
  backingFileOffset: u64, // of the name, which has no NUL; 0: there is none
  backingFileSize: u32,
  mtime: u32, // modification time of the backing file; nobody minds it
  size: u64, // in bytes
  clusterBits: u8,
  l2Bits: u8, // log2 of the entries of an L2 table
  padding: u16,
  cryptMethod: u32, // 0: none, 1: AES
  l1TableOffset: u64, // need not be aligned
});

export const CRYPT_NONE = 0;
export const CRYPT_AES = 1;

/** The reference's limits. */
export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 16;
export const MIN_L2_BITS = 6;
export const MAX_L2_BITS = 13;
export const MAX_BACKING_NAME = 1023;
/** It reads the L1 table in one request, whose length is an int in whole sectors, and counts its entries in one. */
export const MAX_L1_ENTRIES = Math.floor((2 ** 31 - 1) / 8);
export const MAX_L1_BYTES = 2 ** 31 - 512;
/** The most bytes that a file may have for it. */
export const MAX_OFFSET = 2n ** 63n - 2n ** 30n;

export const SECTOR = 512;
export const ENTRY_BYTES = 8;
/** The L1 table is held in memory by pages of this many bytes. */
export const L1_PAGE_BYTES = 4096;
/** log2 of the window of compressed clusters. */
export const WINDOW_BITS = 12;

export interface Geometry {
  readonly clusterBits: number;
  readonly clusterSize: number;
  readonly l2Entries: number;
  readonly l2Bytes: number;
  /** Guest bytes that one L2 table maps. */
  readonly l2Span: number;
  readonly l1Entries: number;
}

/** `size` in bytes, already known to need no more L1 entries than there may be. */
export function geometry(clusterBits: number, l2Bits: number, size: number): Geometry {
  const clusterSize = 2 ** clusterBits;
  const l2Entries = 2 ** l2Bits;
  const l2Span = clusterSize * l2Entries;
  return {
    clusterBits,
    clusterSize,
    l2Entries,
    l2Bytes: l2Entries * ENTRY_BYTES,
    l2Span,
    l1Entries: Math.ceil(size / l2Span),
  };
}

const TWO_32 = 2 ** 32;
const LITTLE_ENDIAN_HOST = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;

function swapWords(bytes: Uint8Array): void {
  if (LITTLE_ENDIAN_HOST) Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).swap32();
}

/** Part of a table as it was read, in place: two words an entry, the upper first. `bytes` owns its buffer. */
export function loadPage(bytes: Uint8Array): Uint32Array {
  swapWords(bytes);
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

/** A copy of bytes [from, to) of a page in disk order. */
export function storePage(words: Uint32Array, from: number, to: number): Uint8Array {
  const copy = words.slice(from / 4, to / 4);
  const bytes = new Uint8Array(copy.buffer);
  swapWords(bytes);
  return bytes;
}

/** An entry's offset; 0: none. What is beyond 2^53 is not exact, and beyond any file. */
export function entryAt(words: Uint32Array, index: number): number {
  return words[2 * index]! * TWO_32 + words[2 * index + 1]!;
}

export function setEntry(words: Uint32Array, index: number, offset: number): void {
  words[2 * index] = Math.floor(offset / TWO_32);
  words[2 * index + 1] = offset % TWO_32;
}

/** Bit 63 of an L2 entry: the cluster is compressed. */
export function isCompressed(words: Uint32Array, index: number): boolean {
  return words[2 * index]! >= 0x8000_0000;
}

/**
 * Of a compressed cluster the length is in the `clusterBits` bits below bit 63, and the offset in the bits below those. Both are
 * counts of bytes.
 */
export function packedAt(words: Uint32Array, index: number, { clusterBits }: Geometry): number {
  const high = words[2 * index]! & (2 ** (31 - clusterBits) - 1);
  return high * TWO_32 + words[2 * index + 1]!;
}

export function packedLength(words: Uint32Array, index: number, { clusterBits }: Geometry): number {
  return (words[2 * index]! >>> (31 - clusterBits)) & (2 ** clusterBits - 1);
}

/** Offsets of compressed clusters are below this. */
export function packedLimit({ clusterBits }: Geometry): number {
  return Math.min(2 ** (63 - clusterBits), Number.MAX_SAFE_INTEGER);
}

export function setPacked(
  words: Uint32Array,
  index: number,
  at: number,
  length: number,
  { clusterBits }: Geometry,
): void {
  const high = Math.floor(at / TWO_32) + length * 2 ** (31 - clusterBits);
  words[2 * index] = (0x8000_0000 + high) >>> 0;
  words[2 * index + 1] = at % TWO_32;
}
