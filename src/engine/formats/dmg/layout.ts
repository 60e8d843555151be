/**
 * The on-disk structures of Apple's Universal Disk Image Format (UDIF), all big-endian. Apple never published the
 * format; names are those of the well-known descriptions of it.
 */
import { bytes, struct, u32, u64 } from '../../codec/struct.js';

export const SECTOR = 512;

/** "koly", the trailer: the last 512 bytes of the file, found by its magic. */
export const KOLY_MAGIC = 0x6b6f6c79;
export const KOLY = struct('big', {
  magic: u32,
  version: u32,
  /** 512. */
  headerSize: u32,
  flags: u32,
  runningDataForkOffset: u64,
  /** Where the chunks' data begins; usually 0. */
  dataForkOffset: u64,
  dataForkLength: u64,
  /** The old place of the chunk tables: a Macintosh resource fork. Length 0 where there is none. */
  resourceForkOffset: u64,
  resourceForkLength: u64,
  segmentNumber: u32,
  segmentCount: u32,
  segmentId: bytes(16),
  dataChecksum: bytes(136),
  /** The new place of the chunk tables: an XML property list. */
  xmlOffset: u64,
  xmlLength: u64,
  reserved1: bytes(120),
  checksum: bytes(136),
  imageVariant: u32,
  /** Size of the guest disk. */
  sectorCount: u64,
  reserved2: bytes(12),
});

/** "mish", a chunk table: this header and then entries to the end of the resource. One table a partition. */
export const MISH_MAGIC = 0x6d697368;
export const MISH = struct('big', {
  magic: u32,
  version: u32,
  /** The guest sector that the entries' sectors count from. */
  firstSector: u64,
  sectorCount: u64,
  /** Added to the entries' data offsets. */
  dataOffset: u64,
  buffersNeeded: u32,
  descriptors: u32,
  reserved: bytes(24),
  checksum: bytes(136),
  chunkCount: u32,
});

/** An entry of a chunk table. Its 64-bit fields are read as two halves: see chunks.ts. */
export const CHUNK = struct('big', {
  kind: u32,
  comment: u32,
  sector: u64,
  sectorCount: u64,
  dataOffset: u64,
  dataLength: u64,
});

/** Room for the header and one entry: QEMU skips resources that are shorter, as it skips those with another magic. */
export const SMALLEST_TABLE = MISH.size + CHUNK.size;

/** Kinds of chunks. */
export const ZERO = 0x00000000;
export const RAW = 0x00000001;
/** "Ignore": never written to; reads as zeros. */
export const IGNORE = 0x00000002;
export const COMMENT = 0x7ffffffe;
export const ADC = 0x80000004;
export const ZLIB = 0x80000005;
export const BZIP2 = 0x80000006;
export const LZFSE = 0x80000007;
export const LZMA = 0x80000008;
export const TERMINATOR = 0xffffffff;

/** The start of a Macintosh resource fork; each resource's data is preceded by its 32-bit length. */
export const RESOURCE_FORK = struct('big', {
  dataOffset: u32,
  mapOffset: u32,
  dataLength: u32,
  mapLength: u32,
});

/** Both limits are QEMU's: a chunk is read and unpacked as a whole, in memory. Real ones are of 1 MiB and less. */
export const MAX_CHUNK_BYTES = 64 * 1024 * 1024;
export const MAX_CHUNK_SECTORS = MAX_CHUNK_BYTES / SECTOR;

/** QEMU's limit on the property list, and ours on the resource fork (16 MiB is what such a fork can hold). */
export const MAX_TABLE_BYTES = 16 * 1024 * 1024;
