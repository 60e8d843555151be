/**
 * The binary structures of VMDK extents. Sources: VMware, Virtual Disk Format 1.1 and 5.0 ("hosted sparse extent",
 * "stream-optimized compressed sparse extent", "ESX server sparse extent"); for seSparse, which VMware never
 * documented, what the reference accepts. Raw table entries do not leave this file.
 */
import { bytes, struct, u16, u32, u64 } from '../../codec/struct.js';

export const SECTOR = 512;

/** `KDMV` and `COWD` as the file has them, read big-endian. */
export const MAGIC_HOSTED = 0x4b444d56;
export const MAGIC_COWD = 0x434f5744;

/** SparseExtentHeader, padded to one sector; also the body of a stream's footer. Offsets and sizes in sectors. */
export const HostedHeader = struct('little', {
  magicNumber: u32,
  version: u32, // 1; 2 with encryption or zeroed grains; 3 with change tracking
  flags: u32,
  capacity: u64, // 0 where the file only carries a descriptor
  grainSize: u64, // in sectors; the specification wants a power of two of at least 8, readers take any
  descriptorOffset: u64, // of the embedded descriptor
  descriptorSize: u64,
  numGTEsPerGT: u32, // entries in a grain table: 512
  rgdOffset: u64, // redundant grain directory
  gdOffset: u64, // grain directory, or GD_AT_END
  overHead: u64, // sectors before the first grain
  uncleanShutdown: bytes(1),
  lineEndCheck: bytes(4), // \n, space, \r, \n: shows text-mode damage
  compressAlgorithm: u16,
});

export const FLAG_NEWLINE_TEST = 1 << 0;
export const FLAG_REDUNDANT_TABLE = 1 << 1;
export const FLAG_ZEROED_GRAINS = 1 << 2;
export const FLAG_COMPRESSED = 1 << 16;
export const FLAG_MARKERS = 1 << 17;
export const COMPRESSION_DEFLATE = 1;
/** `gdOffset` of a stream that was written front to back: the footer knows where the directory is. */
export const GD_AT_END = 0xffffffffffffffffn;

/** Metadata marker: one sector, its payload in the sectors after it. A grain's marker has a `size` above zero instead. */
export const Marker = struct('little', {
  val: u64, // sectors of payload
  size: u32, // 0
  type: u32,
});
export const MARKER_END_OF_STREAM = 0;
export const MARKER_GRAIN_TABLE = 1;
export const MARKER_GRAIN_DIRECTORY = 2;
export const MARKER_FOOTER = 3;
/** `lineEndCheck` of a file that nobody has treated as text. */
export const LINE_ENDS = Uint8Array.of(0x0a, 0x20, 0x0d, 0x0a);
/** Sectors, and so grains and tables, are numbered in 32 bits. */
export const MAX_SECTOR = 0xffffffff;

/** Compressed grain: this, then `size` bytes of an RFC 1950 stream, padded to a sector. */
export const GrainMarker = struct('little', {
  lba: u64, // guest sector of the grain, from the extent's start
  size: u32,
});

/** COWDisk_Header up to what readers need; lengths and offsets in sectors. */
export const CowdHeader = struct('little', {
  magicNumber: u32,
  version: u32,
  flags: u32,
  numSectors: u32,
  grainSize: u32,
  gdOffset: u32,
  numGDEntries: u32,
  freeSector: u32,
});
/** Entries of a COWD grain table: fixed. */
export const COWD_TABLE_ENTRIES = 4096;

/** The constant header of a space-efficient sparse extent; all in sectors. */
export const SeSparseConstHeader = struct('little', {
  magic: u64,
  version: u64,
  capacity: u64,
  grainSize: u64,
  grainTableSize: u64,
  flags: u64,
  reserved1: u64,
  reserved2: u64,
  reserved3: u64,
  reserved4: u64,
  volatileHeaderOffset: u64,
  volatileHeaderSize: u64,
  journalHeaderOffset: u64,
  journalHeaderSize: u64,
  journalOffset: u64,
  journalSize: u64,
  grainDirOffset: u64,
  grainDirSize: u64,
  grainTablesOffset: u64,
  grainTablesSize: u64,
  freeBitmapOffset: u64,
  freeBitmapSize: u64,
  backmapOffset: u64,
  backmapSize: u64,
  grainsOffset: u64,
  grainsSize: u64,
  pad: bytes(304),
});
export const SESPARSE_CONST_MAGIC = 0xcafebaben;
export const SESPARSE_VERSION = 0x0000000200000001n;
export const SESPARSE_GRAIN_SECTORS = 8;
export const SESPARSE_TABLE_SECTORS = 64;

export const SeSparseVolatileHeader = struct('little', {
  magic: u64,
  freeGTNumber: u64,
  nextTxnSeqNumber: u64,
  replayJournal: u64,
  pad: bytes(480),
});
export const SESPARSE_VOLATILE_MAGIC = 0xcafecafen;

const LITTLE_ENDIAN_HOST = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;

/** A table of little-endian 32-bit words in place: `raw` owns its buffer, and its length is a multiple of four. */
export function wordsOf(raw: Uint8Array): Uint32Array {
  if (!LITTLE_ENDIAN_HOST) Buffer.from(raw.buffer, raw.byteOffset, raw.byteLength).swap32();
  return new Uint32Array(raw.buffer, raw.byteOffset, raw.byteLength / 4);
}

/** Entries [from, to) of a table as the file has them: a copy. */
export function bytesOfWords(words: Uint32Array, from = 0, to = words.length): Buffer {
  const copy = words.slice(from, to);
  const raw = Buffer.from(copy.buffer, copy.byteOffset, copy.byteLength);
  if (!LITTLE_ENDIAN_HOST) raw.swap32();
  return raw;
}

/** What a table entry says, where it is not a sector number (those are >= 0). */
export const UNALLOCATED = -1;
export const ZEROED = -2;
export const INVALID = -3;

/** Sector of the grain table that a 32-bit directory entry names. */
export function tableSector(directory: Uint32Array, index: number): number {
  return directory[index] || UNALLOCATED;
}

/** Sector of the grain that a 32-bit table entry names. 1 means "zeros" only where the extent says that it uses it. */
export function grainSector(table: Uint32Array, index: number, zeroedGrains: boolean): number {
  const entry = table[index]!;
  if (entry === 0) return UNALLOCATED;
  return entry === 1 && zeroedGrains ? ZEROED : entry;
}

/** The same for a 64-bit directory entry: 0x10000000 in the upper half marks a table, its number is in the lower. */
export function seTableSector(directory: Uint32Array, index: number, tablesOffset: number): number {
  const low = directory[2 * index]!;
  const high = directory[2 * index + 1]!;
  if (low === 0 && high === 0) return UNALLOCATED;
  if (high !== 0x10000000) return INVALID;
  const sector = tablesOffset + low * SESPARSE_TABLE_SECTORS;
  // The format keeps table addresses within 32 bits of sectors.
  if (sector > 0xffffffff) return INVALID;
  return sector === 0 ? UNALLOCATED : sector;
}

/**
 * The same for a 64-bit table entry. The upper nibble tells the state: 0 unallocated, 1 unmapped by the guest, 2 zeros,
 * 3 allocated. Of an allocated grain's number the low 12 bits are in bits 48..59, the others in bits 0..47.
 */
export function seGrainSector(table: Uint32Array, index: number, grainsOffset: number): number {
  const low = table[2 * index]!;
  const high = table[2 * index + 1]!;
  switch (high >>> 28) {
    case 0:
      return low === 0 && high === 0 ? UNALLOCATED : INVALID;
    case 1:
    case 2:
      return ZEROED;
    case 3: {
      const grain = ((high >>> 16) & 0xfff) + ((high & 0xffff) * 2 ** 32 + low) * 4096;
      const sector = grainsOffset + grain * SESPARSE_GRAIN_SECTORS;
      return sector <= Number.MAX_SAFE_INTEGER / SECTOR - SESPARSE_GRAIN_SECTORS ? sector : INVALID;
    }
    default:
      return INVALID;
  }
}
