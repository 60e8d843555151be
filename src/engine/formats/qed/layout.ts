/**
 * QED on disk. Source: QEMU, "QED Image File Format Specification" (docs/interop/qed_spec); its words stand at the fields.
 * All fields are little-endian. Raw table entries do not leave this file.
 */
import { struct, u32, u64 } from '../../codec/struct.js';

export { MAGIC } from './probe.js';

/** Section "Header". */
export const QedHeader = struct('little', {
  magic: u32, // QED\0
  clusterSize: u32, // in bytes
  tableSize: u32, // for L1 and L2 tables, in clusters
  headerSize: u32, // in clusters
  features: u64, // format feature bits: unknown ones must not be opened
  compatFeatures: u64, // compat feature bits: unknown ones are ignored
  autoclearFeatures: u64, // self-resetting feature bits: unknown ones are cleared
  l1TableOffset: u64, // in bytes, a multiple of cluster_size
  imageSize: u64, // total logical image size, in bytes, a multiple of 512
  backingFilenameOffset: u32, // in bytes from start of header
  backingFilenameSize: u32, // in bytes; the name has no NUL
});

/** Section "Feature bits". No compat and no autoclear bits are defined. */
export const Feature = {
  /** The image uses a backing file. */
  backingFile: 0x01n,
  /** The image needs a consistency check before use. */
  needCheck: 0x02n,
  /** The backing file is a raw disk image and no file format autodetection should be attempted. */
  backingFormatNoProbe: 0x04n,
} as const;
export const KNOWN_FEATURES = Feature.backingFile | Feature.needCheck | Feature.backingFormatNoProbe;

/** "cluster_size must be a power of 2 in range [2^12, 2^26]." */
export const MIN_CLUSTER_SIZE = 2 ** 12;
export const MAX_CLUSTER_SIZE = 2 ** 26;
export const DEFAULT_CLUSTER_SIZE = 65536;
/** "table_size must be a power of 2 in range [1, 16]." */
export const MIN_TABLE_SIZE = 1;
export const MAX_TABLE_SIZE = 16;
export const DEFAULT_TABLE_SIZE = 4;
/** The longest name that the reference reads back: its buffer is PATH_MAX with the NUL. */
export const MAX_BACKING_NAME = 4095;

export const SECTOR = 512;
export const ENTRY_BYTES = 8;
/** Tables (up to 1 GiB) are held in memory by pages of at most this many bytes. */
const MAX_PAGE_BYTES = 65536;

export function isPowerOfTwoWithin(value: number, least: number, most: number): boolean {
  return value >= least && value <= most && Number.isInteger(Math.log2(value));
}

/** The largest image, "TABLE_NOFFSETS * TABLE_NOFFSETS * cluster_size"; modulo 2^64, as the reference counts. */
export function maxImageSize(clusterSize: number, tableSize: number): bigint {
  const entries = BigInt((clusterSize * tableSize) / ENTRY_BYTES);
  return BigInt.asUintN(64, entries * entries * BigInt(clusterSize));
}

/** What follows from cluster_size and table_size. */
export interface Geometry {
  readonly clusterSize: number;
  /** Bytes of an L1 or L2 table. */
  readonly tableBytes: number;
  readonly tableEntries: number;
  /** Guest bytes that one L2 table maps. */
  readonly l2Span: number;
  readonly pageBytes: number;
  readonly pageEntries: number;
}

export function geometry(clusterSize: number, tableSize: number): Geometry {
  const tableBytes = clusterSize * tableSize;
  const tableEntries = tableBytes / ENTRY_BYTES;
  const pageBytes = Math.min(tableBytes, MAX_PAGE_BYTES);
  return {
    clusterSize,
    tableBytes,
    tableEntries,
    l2Span: tableEntries * clusterSize,
    pageBytes,
    pageEntries: pageBytes / ENTRY_BYTES,
  };
}

/** Data cluster offsets with special meanings (section "Tables"). */
export const UNALLOCATED = 0;
export const ZERO_CLUSTER = 1;

const TWO_32 = 2 ** 32;
const LITTLE_ENDIAN_HOST = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;

function swapWords(bytes: Uint8Array): void {
  if (!LITTLE_ENDIAN_HOST) Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).swap32();
}

/** Part of a table as it was read, in place: two words an entry, the lower first. `bytes` owns its buffer. */
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

/** An entry's offset. What is beyond 2^53 is not exact, and beyond any file. */
export function entryAt(words: Uint32Array, index: number): number {
  return words[2 * index + 1]! * TWO_32 + words[2 * index]!;
}

export function setEntry(words: Uint32Array, index: number, offset: number): void {
  words[2 * index] = offset % TWO_32;
  words[2 * index + 1] = Math.floor(offset / TWO_32);
}
