/**
 * The qcow2 format on disk (QEMU docs/interop/qcow2.txt): structures, feature bits, limits, and what the raw entries of
 * its tables mean. Raw bits do not leave this file; everything is big-endian.
 *
 * A table of 64-bit entries (L1, L2, refcount table, bitmap table) is held as a Uint32Array in host byte order: entry i
 * is the words [2i] (high half) and [2i + 1] (low half). Extended L2 entries have four words: the descriptor and then
 * the two halves of the subcluster bitmap. `loadTable` and `storeTable` swap a whole table at once.
 */
import { bytes, struct, u8, u16, u32, u64 } from '../../codec/struct.js';

// ---------------------------------------------------------------------------------------------------------- limits

/** 'Q', 'F', 'I', 0xfb */
export const MAGIC = 0x514649fb;
/** Cluster sizes of 512 bytes to 2 MiB: the bounds of QEMU's implementation; the specification only says at least 9. */
export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
/** Subclusters are at least a sector, and there are 32: extended L2 needs clusters of 16 KiB. */
export const MIN_EXTENDED_CLUSTER_BITS = 14;
/** refcount_bits = 1 << refcount_order, at most 64. */
export const MAX_REFCOUNT_ORDER = 6;
/** An active L1 table of 32 MiB maps 2 EiB at the default cluster size; QEMU refuses larger ones. */
export const MAX_L1_BYTES = 32 << 20;
/** QEMU refuses refcount tables above 8 MiB. */
export const MAX_REFCOUNT_TABLE_BYTES = 8 << 20;
/** QEMU's bounds for the snapshot table. */
export const MAX_SNAPSHOTS = 65536;
export const MAX_SNAPSHOT_TABLE_BYTES = 1024 * MAX_SNAPSHOTS;
export const MAX_SNAPSHOT_EXTRA_BYTES = 1024;
/** The specification: at most 1023 bytes. */
export const MAX_BACKING_NAME = 1023;
/** QEMU's bounds for persistent bitmaps. */
export const MAX_BITMAPS = 65535;
export const MAX_BITMAP_DIRECTORY_BYTES = MAX_BITMAPS * 1024;
export const MAX_BITMAP_TABLE_ENTRIES = 0x8000000;
export const MAX_BITMAP_BYTES = 512 << 20;
export const MAX_BITMAP_NAME = 1023;
export const MIN_BITMAP_GRANULARITY_BITS = 9;
export const MAX_BITMAP_GRANULARITY_BITS = 31;
/** Host offsets in table entries have 56 bits. */
export const MAX_HOST_OFFSET = 2 ** 56 - 1;
/** Compressed data is counted in sectors of this size, whatever the cluster size. */
export const COMPRESSED_SECTOR = 512;
/** The deflate window of compressed clusters: 2^12 bytes, no zlib header. */
export const DEFLATE_WINDOW_BITS = 12;
/** Subclusters in a cluster of an image with extended L2 entries. */
export const SUBCLUSTERS = 32;

// --------------------------------------------------------------------------------------------------------- header

/** The fields of version 2; all of a version 2 header. */
export const HeaderV2 = struct('big', {
  magic: u32,
  version: u32,
  /** Offset of the backing file name (not NUL-terminated), 0: no backing file. */
  backingFileOffset: u64,
  backingFileSize: u32,
  clusterBits: u32,
  /** Virtual disk size in bytes. */
  size: u64,
  /** 0: none, 1: AES, 2: LUKS. */
  cryptMethod: u32,
  /** Entries in the active L1 table. */
  l1Size: u32,
  l1TableOffset: u64,
  refcountTableOffset: u64,
  refcountTableClusters: u32,
  snapshotCount: u32,
  snapshotsOffset: u64,
});

/** What version 3 adds behind the version 2 header, as far as every version 3 image has it. */
export const HeaderV3 = struct('big', {
  incompatible: u64,
  compatible: u64,
  autoclear: u64,
  /** refcount_bits = 1 << refcountOrder. */
  refcountOrder: u32,
  /** Length of the header structure in bytes, a multiple of 8, at least 104. */
  headerLength: u32,
});

/** Optional fields, there when header_length reaches over them. */
export const HeaderExtra = struct('big', {
  /** 0: deflate, 1: zstd. Non-zero exactly when the compression type bit is set. */
  compressionType: u8,
  padding: bytes(7),
});

export const V2_HEADER_LENGTH = HeaderV2.size;
export const V3_HEADER_LENGTH = HeaderV2.size + HeaderV3.size;
/** What writers write today. */
export const FULL_HEADER_LENGTH = V3_HEADER_LENGTH + HeaderExtra.size;

/** Byte offset in the file of header fields that are rewritten one at a time. */
export const headerOffset = {
  size: HeaderV2.offsetOf('size'),
  l1Size: HeaderV2.offsetOf('l1Size'),
  l1TableOffset: HeaderV2.offsetOf('l1TableOffset'),
  refcountTableOffset: HeaderV2.offsetOf('refcountTableOffset'),
  refcountTableClusters: HeaderV2.offsetOf('refcountTableClusters'),
  snapshotCount: HeaderV2.offsetOf('snapshotCount'),
  incompatible: HeaderV2.size + HeaderV3.offsetOf('incompatible'),
  compatible: HeaderV2.size + HeaderV3.offsetOf('compatible'),
  autoclear: HeaderV2.size + HeaderV3.offsetOf('autoclear'),
} as const;

export const CompressionType = { zlib: 0, zstd: 1 } as const;
export const CryptMethod = { none: 0, aes: 1, luks: 2 } as const;

/** Bits of the incompatible features: an image with an unknown one must not be opened. */
export const Incompatible = {
  /** Refcounts may be wrong (lazy refcounts, not closed cleanly): recount before they are used. */
  dirty: 1n << 0n,
  /** Some data structure is corrupt: do not write. */
  corrupt: 1n << 1n,
  /** Guest clusters are in an external data file. */
  dataFile: 1n << 2n,
  /** The compression type field is not zlib. */
  compression: 1n << 3n,
  /** Extended L2 entries: subclusters. */
  extendedL2: 1n << 4n,
} as const;
export const KNOWN_INCOMPATIBLE = 0x1fn;

/** Bits of the compatible features: an unknown one may be ignored. */
export const Compatible = {
  lazyRefcounts: 1n << 0n,
} as const;

/** Bits of the autoclear features: a writer that does not know one clears it. */
export const Autoclear = {
  /** The bitmaps extension is consistent with the image. */
  bitmaps: 1n << 0n,
  /** The external data file can be read as a raw image by itself. */
  dataFileRaw: 1n << 1n,
} as const;
export const KNOWN_AUTOCLEAR = 0x3n;

// -------------------------------------------------------------------------------------------------- header extensions

/** Follows the header directly; the data is padded with zeros to a multiple of 8. */
export const ExtensionHeader = struct('big', { type: u32, length: u32 });
export const ExtensionType = {
  end: 0,
  backingFormat: 0xe2792aca,
  featureNames: 0x6803f857,
  bitmaps: 0x23852875,
  cryptoHeader: 0x0537be77,
  dataFile: 0x44415441,
} as const;

/** One entry of the feature name table: which feature set (0 incompatible, 1 compatible, 2 autoclear), which bit. */
export const FeatureName = struct('big', { type: u8, bit: u8, name: bytes(46) });
export const FeatureSet = { incompatible: 0, compatible: 1, autoclear: 2 } as const;

export const BitmapsExtension = struct('big', {
  count: u32,
  /** Must be zero. */
  reserved: u32,
  directorySize: u64,
  directoryOffset: u64,
});

/** An entry of the bitmap directory; extra data and the name follow, padded to a multiple of 8. */
export const BitmapEntry = struct('big', {
  tableOffset: u64,
  /** Entries in the bitmap table. */
  tableSize: u32,
  flags: u32,
  /** 1: dirty tracking bitmap; others are unknown. */
  type: u8,
  granularityBits: u8,
  nameSize: u16,
  extraDataSize: u32,
});
export const BitmapFlag = {
  /** Was not saved correctly: do not trust. */
  inUse: 1 << 0,
  /** Must be kept up to date by whoever writes to the image. */
  auto: 1 << 1,
  /** May be used though its extra data is not understood. */
  extraDataCompatible: 1 << 2,
} as const;
/** `extraDataCompatible` is no use to who refuses extra data, and is refused with it, as QEMU does. */
export const KNOWN_BITMAP_FLAGS = BitmapFlag.inUse | BitmapFlag.auto;
export const BITMAP_TYPE_DIRTY = 1;

export const CryptoHeaderExtension = struct('big', { offset: u64, length: u64 });

// ----------------------------------------------------------------------------------------------------- snapshot table

/** An entry of the snapshot table; extra data, id and name follow, padded to a multiple of 8. */
export const SnapshotEntry = struct('big', {
  l1TableOffset: u64,
  l1Size: u32,
  idSize: u16,
  nameSize: u16,
  dateSec: u32,
  dateNsec: u32,
  vmClockNsec: u64,
  /** 0 where the 64-bit field of the extra data is used. */
  vmStateSize: u32,
  extraDataSize: u32,
});
/** The known extra data of a snapshot; version 3 demands the first two. */
export const SnapshotExtra = struct('big', {
  vmStateSizeLarge: u64,
  diskSize: u64,
  /** All ones: no instruction count. */
  icount: u64,
});
export const NO_ICOUNT = 0xffff_ffff_ffff_ffffn;

// ---------------------------------------------------------------------------------------------------------- geometry

/** Everything that follows from the cluster size and the feature bits. Sizes in bytes. */
export interface Geometry {
  readonly clusterBits: number;
  readonly clusterSize: number;
  readonly extendedL2: boolean;
  /** Guest clusters live in another file, where offset 0 is a valid place for one. */
  readonly externalData: boolean;
  /** 32-bit words of an L2 entry: 2, with extended L2 4. */
  readonly l2Words: number;
  readonly l2EntryBytes: number;
  /** Entries of an L2 table, which is one cluster. */
  readonly l2Entries: number;
  /** Guest bytes that one L2 table (one L1 entry) maps. */
  readonly l2Span: number;
  readonly subclusterSize: number;
  /** 1 or 32. */
  readonly subclusters: number;
  readonly refcountOrder: number;
  readonly refcountBits: number;
  /** Entries of a refcount block, which is one cluster. */
  readonly refcountBlockEntries: number;
  /** Largest storable reference count. */
  readonly maxRefcount: number;
  /** In the high word of a compressed descriptor: where the sector count begins, and its mask. */
  readonly packedShift: number;
  readonly packedSectorMask: number;
}

export function geometry(of: {
  readonly clusterBits: number;
  readonly refcountOrder: number;
  readonly extendedL2: boolean;
  readonly externalData: boolean;
}): Geometry {
  const { clusterBits, refcountOrder, extendedL2, externalData } = of;
  const clusterSize = 2 ** clusterBits;
  const l2Words = extendedL2 ? 4 : 2;
  const l2Entries = clusterSize / (l2Words * 4);
  const subclusters = extendedL2 ? SUBCLUSTERS : 1;
  const refcountBits = 1 << refcountOrder;
  return {
    clusterBits,
    clusterSize,
    extendedL2,
    externalData,
    l2Words,
    l2EntryBytes: l2Words * 4,
    l2Entries,
    l2Span: l2Entries * clusterSize,
    subclusterSize: clusterSize / subclusters,
    subclusters,
    refcountOrder,
    refcountBits,
    refcountBlockEntries: (clusterSize * 8) / refcountBits,
    // QEMU keeps 64-bit counts positive as signed numbers; above 2^53 a double is near enough for a bound.
    maxRefcount: refcountBits === 64 ? 2 ** 63 : 2 ** refcountBits - 1,
    // The specification's x = 62 - (cluster_bits - 8) is a bit of the whole entry; it is always in the high word.
    packedShift: 62 - (clusterBits - 8) - 32,
    packedSectorMask: 2 ** (clusterBits - 8) - 1,
  };
}

/** Where a file can have bytes at most. */
export const MAX_FILE_BYTES = 2n ** 63n - 1n;

/** A table's place in the file: aligned, and its end not beyond what a file can be. */
export function validPlace(at: bigint, bytes: number, clusterSize: number): boolean {
  return at % BigInt(clusterSize) === 0n && at + BigInt(bytes) <= MAX_FILE_BYTES;
}

// ------------------------------------------------------------------------------------------------------ whole tables

const LITTLE_ENDIAN_HOST = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

function swapInPlace(words: Uint32Array): void {
  if (LITTLE_ENDIAN_HOST && words.length > 0) {
    Buffer.from(words.buffer, words.byteOffset, words.byteLength).swap32();
  }
}

/** The bytes of a table, to read into or write from. */
export function tableBytes(words: Uint32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

/** Makes a table whose bytes were just read usable: host order, in place. */
export function loadTable(words: Uint32Array): Uint32Array {
  swapInPlace(words);
  return words;
}

/** A copy of (part of) a table in disk order, ready to be written. `from` and `to` count words. */
export function storeTable(words: Uint32Array, from = 0, to = words.length): Uint8Array {
  const copy = words.slice(from, to);
  swapInPlace(copy);
  return tableBytes(copy);
}

// ------------------------------------------------------------------------------------------------- L1 and other tables

const TWO_32 = 2 ** 32;
/** Bits 9-55 of an entry are the offset. */
const OFFSET_HIGH = 0x00ff_ffff;
const OFFSET_LOW = 0xffff_fe00;
const HIGH_COPIED = 0x8000_0000;
const HIGH_COMPRESSED = 0x4000_0000;
const LOW_ZERO = 1;

/** The host offset (bits 9-55) of entry `index` of an L1 or L2 table; may be unaligned to clusters in a corrupt image. */
export function offsetAt(words: Uint32Array, word: number): number {
  return (words[word]! & OFFSET_HIGH) * TWO_32 + ((words[word + 1]! & OFFSET_LOW) >>> 0);
}

/** Offset of the L2 table that L1 entry `index` names, 0: not allocated. */
export function l1Offset(l1: Uint32Array, index: number): number {
  return offsetAt(l1, index * 2);
}
/** True where the refcount of the L2 table is exactly one: it may be written in place. */
export function l1Copied(l1: Uint32Array, index: number): boolean {
  return (l1[index * 2]! & HIGH_COPIED) !== 0;
}
export function l1HasReservedBits(l1: Uint32Array, index: number): boolean {
  return (l1[index * 2]! & 0x7f00_0000) !== 0 || (l1[index * 2 + 1]! & 0x1ff) !== 0;
}
/** `offset` 0 clears the entry. */
export function setL1(l1: Uint32Array, index: number, offset: number, copied: boolean): void {
  l1[index * 2] = (Math.floor(offset / TWO_32) | (copied ? HIGH_COPIED : 0)) >>> 0;
  l1[index * 2 + 1] = offset >>> 0;
}

/** Offset (bits 9-63) of the refcount block that entry `index` of the refcount table names, 0: none, all refcounts 0. */
export function refcountTableOffset(table: Uint32Array, index: number): number {
  return table[index * 2]! * TWO_32 + ((table[index * 2 + 1]! & OFFSET_LOW) >>> 0);
}
export function refcountTableHasReservedBits(table: Uint32Array, index: number): boolean {
  return (table[index * 2 + 1]! & 0x1ff) !== 0;
}
export function setRefcountTable(table: Uint32Array, index: number, offset: number): void {
  table[index * 2] = Math.floor(offset / TWO_32);
  table[index * 2 + 1] = offset >>> 0;
}

/** An entry of a bitmap table: a cluster of bits, or a run that is all zeros or all ones. */
export type BitmapCluster =
  | { readonly kind: 'zeros' }
  | { readonly kind: 'ones' }
  | { readonly kind: 'data'; readonly at: number }
  /** Reserved bits are set. */
  | { readonly kind: 'invalid' };
export function bitmapCluster(table: Uint32Array, index: number): BitmapCluster {
  const high = table[index * 2]!;
  const low = table[index * 2 + 1]!;
  if ((high & 0xff00_0000) !== 0 || (low & 0x1fe) !== 0) return { kind: 'invalid' };
  const at = offsetAt(table, index * 2);
  if (at !== 0) return (low & 1) === 0 ? { kind: 'data', at } : { kind: 'invalid' };
  return { kind: (low & 1) === 0 ? 'zeros' : 'ones' };
}

// ---------------------------------------------------------------------------------------------------------- L2 entries

/** What a guest cluster is, as a number: tables of millions of entries are scanned by it. */
export const Kind = {
  unallocated: 0,
  /** Reads as zeros, no host cluster. */
  zeroPlain: 1,
  /** Reads as zeros, a host cluster is reserved for it. */
  zeroAlloc: 2,
  /** A host cluster holds it (with extended L2: some subclusters of it may not be in use). */
  normal: 3,
  compressed: 4,
  /** Only of a subcluster: its two bits contradict each other. */
  invalid: 5,
} as const;
export type Kind = (typeof Kind)[keyof typeof Kind];

/**
 * The kind of the L2 entry that begins at `word`. With extended L2 the zero flag is not in use and the answer is
 * unallocated, normal or compressed: ask `subclusterKind` for the rest.
 */
export function clusterKind(l2: Uint32Array, word: number, g: Geometry): Kind {
  const high = l2[word]!;
  const low = l2[word + 1]!;
  if ((high & HIGH_COMPRESSED) !== 0) return Kind.compressed;
  const hasOffset = (high & OFFSET_HIGH) !== 0 || (low & OFFSET_LOW) !== 0;
  if ((low & LOW_ZERO) !== 0 && !g.extendedL2) return hasOffset ? Kind.zeroAlloc : Kind.zeroPlain;
  if (hasOffset) return Kind.normal;
  // Offset 0 is a cluster like any other in an external data file; the copied flag tells it from "unallocated".
  return g.externalData && (high & HIGH_COPIED) !== 0 ? Kind.normal : Kind.unallocated;
}

/** The kind of subcluster `index` (0..31) of the extended entry at `word`, whose cluster kind is given. */
export function subclusterKind(l2: Uint32Array, word: number, kind: Kind, index: number): Kind {
  if (kind === Kind.compressed) return kind;
  const zero = (l2[word + 2]! >>> index) & 1;
  const allocated = (l2[word + 3]! >>> index) & 1;
  if (zero !== 0 && allocated !== 0) return Kind.invalid;
  if (kind === Kind.normal) {
    return allocated !== 0 ? Kind.normal : zero !== 0 ? Kind.zeroAlloc : Kind.unallocated;
  }
  return allocated !== 0 ? Kind.invalid : zero !== 0 ? Kind.zeroPlain : Kind.unallocated;
}

/** Refcount is exactly one: the cluster may be written in place. */
export function isCopied(l2: Uint32Array, word: number): boolean {
  return (l2[word]! & HIGH_COPIED) !== 0;
}
export function setCopied(table: Uint32Array, word: number, copied: boolean): void {
  table[word] = (copied ? table[word]! | HIGH_COPIED : table[word]! & ~HIGH_COPIED) >>> 0;
}

/** Where the bytes of a compressed cluster begin: any byte of the file. */
export function packedOffset(l2: Uint32Array, word: number, g: Geometry): number {
  return (l2[word]! & (2 ** g.packedShift - 1)) * TWO_32 + l2[word + 1]!;
}
/** How many bytes from there belong to it at most: up to the end of its last 512-byte sector. */
export function packedLength(l2: Uint32Array, word: number, g: Geometry): number {
  const sectors = ((l2[word]! >>> g.packedShift) & g.packedSectorMask) + 1;
  return sectors * COMPRESSED_SECTOR - (l2[word + 1]! & (COMPRESSED_SECTOR - 1));
}

/**
 * How many entries from `word` on, the first of which is of this kind (unallocated or zeroPlain), up to `most`, are of it
 * too. Not for extended L2.
 */
export function countPlain(l2: Uint32Array, word: number, most: number, kind: Kind, g: Geometry): number {
  let count = 1;
  if (kind === Kind.unallocated && !g.externalData) {
    // Flags without an offset mean nothing, and are not there in sane tables: plain zeros are the fast case.
    for (let w = word + 2; count < most; w += 2) {
      if ((l2[w]! | l2[w + 1]!) !== 0 && clusterKind(l2, w, g) !== kind) break;
      count++;
    }
    return count;
  }
  while (count < most && clusterKind(l2, word + count * 2, g) === kind) count++;
  return count;
}

/**
 * How many entries from `word` on, up to `most`, are of the first one's kind (normal or zeroAlloc) with host clusters that
 * follow each other; with `sameCopied` only while the copied flag is the first one's. Not for extended L2.
 */
export function countContiguous(
  l2: Uint32Array,
  word: number,
  most: number,
  g: Geometry,
  sameCopied: boolean,
): number {
  const highMask = (OFFSET_HIGH | HIGH_COMPRESSED | (sameCopied ? HIGH_COPIED : 0)) >>> 0;
  const lowMask = (OFFSET_LOW | LOW_ZERO) >>> 0;
  const { clusterSize } = g;
  let high = (l2[word]! & highMask) >>> 0;
  let low = (l2[word + 1]! & lowMask) >>> 0;
  const end = word + most * 2;
  let w = word + 2;
  for (; w < end; w += 2) {
    low += clusterSize;
    if (low >= TWO_32) {
      low -= TWO_32;
      high++;
    }
    if ((l2[w + 1]! & lowMask) >>> 0 !== low || (l2[w]! & highMask) >>> 0 !== high) break;
  }
  return (w - word) / 2;
}

/** Bits that the specification reserves in a descriptor that is not compressed. */
export function hasReservedBits(l2: Uint32Array, word: number, g: Geometry): boolean {
  const high = l2[word]!;
  if ((high & HIGH_COMPRESSED) !== 0) return false;
  return (high & 0x3f00_0000) !== 0 || (l2[word + 1]! & (g.extendedL2 ? 0x1ff : 0x1fe)) !== 0;
}

/** One L2 entry in full, for whoever looks at entries singly. Offsets may be unaligned in a corrupt image. */
export type Cluster =
  | { readonly kind: 'unallocated' }
  | { readonly kind: 'zero-plain' }
  | { readonly kind: 'zero-alloc'; readonly at: number; readonly copied: boolean }
  | { readonly kind: 'normal'; readonly at: number; readonly copied: boolean }
  | { readonly kind: 'compressed'; readonly at: number; readonly length: number; readonly copied: boolean }
  /** Extended L2. `at` is absent where there is no host cluster; bit i of the masks (unsigned) is subcluster i. */
  | {
      readonly kind: 'subclusters';
      readonly at?: number;
      readonly copied: boolean;
      readonly allocated: number;
      readonly zeros: number;
    };

export function interpretCluster(l2: Uint32Array, word: number, g: Geometry): Cluster {
  const kind = clusterKind(l2, word, g);
  const copied = isCopied(l2, word);
  if (kind === Kind.compressed) {
    return { kind: 'compressed', at: packedOffset(l2, word, g), length: packedLength(l2, word, g), copied };
  }
  const at = offsetAt(l2, word);
  if (g.extendedL2) {
    const masks = { copied, allocated: l2[word + 3]!, zeros: l2[word + 2]! };
    return kind === Kind.normal ? { kind: 'subclusters', at, ...masks } : { kind: 'subclusters', ...masks };
  }
  switch (kind) {
    case Kind.zeroPlain:
      return { kind: 'zero-plain' };
    case Kind.zeroAlloc:
      return { kind: 'zero-alloc', at, copied };
    case Kind.normal:
      return { kind: 'normal', at, copied };
    default:
      return { kind: 'unallocated' };
  }
}

/** Puts a host cluster into an entry, with the copied flag; `zero`: reads as zeros all the same (not with extended L2). */
export function setCluster(l2: Uint32Array, word: number, at: number, zero = false, copied = true): void {
  l2[word] = (Math.floor(at / TWO_32) | (copied ? HIGH_COPIED : 0)) >>> 0;
  l2[word + 1] = ((at >>> 0) | (zero ? LOW_ZERO : 0)) >>> 0;
}
/** As `setCluster` for `count` entries whose host clusters follow each other from `at` on. Not for extended L2. */
export function setClusterRun(l2: Uint32Array, word: number, count: number, at: number, g: Geometry): void {
  const { clusterSize } = g;
  let high = (Math.floor(at / TWO_32) | HIGH_COPIED) >>> 0;
  let low = at >>> 0;
  for (let w = word; w < word + count * 2; w += 2) {
    l2[w] = high;
    l2[w + 1] = low;
    low += clusterSize;
    if (low >= TWO_32) {
      low -= TWO_32;
      high++;
    }
  }
}
/** Unallocated, or zeros without a host cluster. An extended entry loses its bitmaps, or gets all zero bits. */
export function clearCluster(l2: Uint32Array, word: number, zero: boolean, g: Geometry): void {
  l2[word] = 0;
  l2[word + 1] = zero && !g.extendedL2 ? LOW_ZERO : 0;
  if (g.extendedL2) setSubclusters(l2, word, 0, zero ? 0xffff_ffff : 0);
}
/** The two masks of an extended entry (unsigned, bit i is subcluster i). */
export function setSubclusters(l2: Uint32Array, word: number, allocated: number, zeros: number): void {
  l2[word + 2] = zeros >>> 0;
  l2[word + 3] = allocated >>> 0;
}
export function allocatedMask(l2: Uint32Array, word: number): number {
  return l2[word + 3]!;
}
export function zeroMask(l2: Uint32Array, word: number): number {
  return l2[word + 2]!;
}
/** A compressed cluster of `length` bytes at byte offset `at`. */
export function setPacked(l2: Uint32Array, word: number, at: number, length: number, g: Geometry): void {
  const sectors = Math.floor((at + length - 1) / COMPRESSED_SECTOR) - Math.floor(at / COMPRESSED_SECTOR);
  l2[word] = (HIGH_COMPRESSED | (sectors << g.packedShift) | Math.floor(at / TWO_32)) >>> 0;
  l2[word + 1] = at >>> 0;
  if (g.extendedL2) setSubclusters(l2, word, 0, 0);
}
/** Highest byte that a compressed descriptor can address. */
export function maxPackedOffset(g: Geometry): number {
  return Math.min(2 ** (g.packedShift + 32) - 1, Number.MAX_SAFE_INTEGER);
}

// ---------------------------------------------------------------------------------------------------- refcount blocks

/** Access to the entries of a refcount block, which stays in disk order: narrow entries need no swap. */
export interface RefcountAccess {
  get(block: Uint8Array, index: number): number;
  /** `value` must not exceed the geometry's maxRefcount. */
  set(block: Uint8Array, index: number, value: number): void;
}

/** The first entry from `from` on that is zero; `entries`, the block's number of entries, for none. */
export function firstZero(access: RefcountAccess, block: Uint8Array, from: number, entries: number): number {
  // Full blocks are gone over at once; zero has no byte order.
  if (block.byteLength === entries * 2 && block.byteOffset % 2 === 0) {
    const found = new Uint16Array(block.buffer, block.byteOffset, entries).indexOf(0, from);
    return found < 0 ? entries : found;
  }
  let entry = from;
  while (entry < entries && access.get(block, entry) !== 0) entry++;
  return entry;
}

/** Entries below a byte: the first entry is in the lowest bits. */
function narrow(order: number): RefcountAccess {
  const bits = 1 << order;
  const perByteBits = 3 - order;
  const mask = (1 << bits) - 1;
  const within = (1 << perByteBits) - 1;
  return {
    get: (block, index) => (block[index >>> perByteBits]! >>> ((index & within) * bits)) & mask,
    set: (block, index, value) => {
      const byte = index >>> perByteBits;
      const shift = (index & within) * bits;
      block[byte] = (block[byte]! & ~(mask << shift)) | (value << shift);
    },
  };
}

function wide32(block: Uint8Array, at: number): number {
  return ((block[at]! << 24) | (block[at + 1]! << 16) | (block[at + 2]! << 8) | block[at + 3]!) >>> 0;
}
function setWide32(block: Uint8Array, at: number, value: number): void {
  block[at] = value >>> 24;
  block[at + 1] = value >>> 16;
  block[at + 2] = value >>> 8;
  block[at + 3] = value;
}

const ACCESS: readonly RefcountAccess[] = [
  narrow(0),
  narrow(1),
  narrow(2),
  {
    get: (block, index) => block[index]!,
    set: (block, index, value) => {
      block[index] = value;
    },
  },
  {
    get: (block, index) => (block[index * 2]! << 8) | block[index * 2 + 1]!,
    set: (block, index, value) => {
      block[index * 2] = value >>> 8;
      block[index * 2 + 1] = value;
    },
  },
  {
    get: (block, index) => wide32(block, index * 4),
    set: (block, index, value) => setWide32(block, index * 4, value),
  },
  {
    get: (block, index) => wide32(block, index * 8) * TWO_32 + wide32(block, index * 8 + 4),
    set: (block, index, value) => {
      setWide32(block, index * 8, Math.floor(value / TWO_32));
      setWide32(block, index * 8 + 4, value >>> 0);
    },
  },
];

/** The accessor for `refcountOrder` 0..6. 64-bit counts above 2^53 come out rounded. */
export function refcountAccess(order: number): RefcountAccess {
  return ACCESS[order]!;
}
