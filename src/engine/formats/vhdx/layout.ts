/** On-disk structures of VHDX, in the words of [MS-VHDX]. All are little-endian. */
import { bytes, struct, u16, u32, u64 } from '../../codec/struct.js';
import { ImageError } from '../../error.js';

export const KIB = 1024;
export const MIB = 1024 * KIB;
/** Structures of the log, and header updates, come in units of this. */
export const LOG_SECTOR = 4 * KIB;
export const SECTOR = 512;

/** Section 2.2: the header section and what is where in it. */
export const HEADER_SECTION_SIZE = MIB;
export const HEADER_AT = [64 * KIB, 128 * KIB] as const;
export const HEADER_SIZE = 4 * KIB;
export const REGION_TABLE_AT = [192 * KIB, 256 * KIB] as const;
export const REGION_TABLE_SIZE = 64 * KIB;

const ascii = (text: string): Uint8Array => Uint8Array.from(text, (char) => char.charCodeAt(0));

/** A GUID from its usual form: the first three groups are stored little-endian. */
export function guid(text: string): Uint8Array {
  const hex = text.replaceAll('-', '');
  const raw = Uint8Array.from({ length: 16 }, (_, at) => Number.parseInt(hex.slice(2 * at, 2 * at + 2), 16));
  const order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
  return Uint8Array.from(order, (from) => raw[from]!);
}

export function sameBytes(one: Uint8Array, other: Uint8Array): boolean {
  return one.length === other.length && one.every((byte, at) => byte === other[at]);
}

export const NO_GUID = new Uint8Array(16);

/** 2.2.1 File Type Identifier. */
export const FILE_SIGNATURE = ascii('vhdxfile');
export const FileIdentifier = struct('little', { signature: bytes(8), creator: bytes(512) });

/** 2.2.2 Headers. The checksum is over 4 KiB with this field zero. */
export const HEADER_SIGNATURE = 0x64616568; // 'head'
export const HEADER_VERSION = 1;
export const LOG_VERSION = 0;
export const Header = struct('little', {
  signature: u32,
  checksum: u32,
  sequenceNumber: u64,
  fileWriteGuid: bytes(16),
  dataWriteGuid: bytes(16),
  /** All zero: the log is empty. Else the log's entries that count have the same GUID. */
  logGuid: bytes(16),
  logVersion: u16,
  version: u16,
  logLength: u32,
  logOffset: u64,
});

/** 2.2.3 Region Table. The checksum is over 64 KiB. */
export const REGION_SIGNATURE = 0x69676572; // 'regi'
export const MAX_REGIONS = 2047;
export const RegionTableHeader = struct('little', {
  signature: u32,
  checksum: u32,
  entryCount: u32,
  reserved: u32,
});
export const RegionTableEntry = struct('little', {
  guid: bytes(16),
  fileOffset: u64,
  length: u32,
  /** Bit 0: who does not know this region must not open the file. */
  required: u32,
});
export const REGION_REQUIRED = 1;
export const BAT_REGION = guid('2dc27766-f623-4200-9d64-115e9bfd4a08');
export const METADATA_REGION = guid('8b7ca206-4790-4b9a-b8fe-575f050f886e');

/** 2.3.1.1 Entry Header. */
export const ENTRY_SIGNATURE = 0x65676f6c; // 'loge'
export const EntryHeader = struct('little', {
  signature: u32,
  /** Over the whole entry with this field zero. */
  checksum: u32,
  /** Of the entry, a multiple of 4 KiB. */
  entryLength: u32,
  /** Offset in the log, of the first entry of the sequence that this one ends. */
  tail: u32,
  sequenceNumber: u64,
  descriptorCount: u32,
  reserved: u32,
  logGuid: bytes(16),
  /** The file was at least this long, on stable storage, when the entry was written. */
  flushedFileOffset: u64,
  /** The file must be at least this long for what it holds. */
  lastFileOffset: u64,
});
/** 2.3.1.2 and 2.3.1.3: descriptors are 32 bytes, and follow the header at once. */
export const DESCRIPTOR_SIZE = 32;
export const DATA_SIGNATURE = 0x63736564; // 'desc'
export const DataDescriptor = struct('little', {
  signature: u32,
  /** The last 4 bytes of the sector that it describes, which the data sector has no room for. */
  trailingBytes: u32,
  /** Its first 8 bytes, likewise. */
  leadingBytes: u64,
  fileOffset: u64,
  sequenceNumber: u64,
});
export const ZERO_SIGNATURE = 0x6f72657a; // 'zero'
export const ZeroDescriptor = struct('little', {
  signature: u32,
  reserved: u32,
  zeroLength: u64,
  fileOffset: u64,
  sequenceNumber: u64,
});
/** 2.3.1.4 Data Sector: the sector's bytes [8, 4092) between two halves of the sequence number. */
export const DATA_SECTOR_SIGNATURE = 0x61746164; // 'data'
export const LEADING_BYTES = 8;
export const TRAILING_BYTES = 4;
export const DataSector = struct('little', {
  signature: u32,
  sequenceHigh: u32,
  data: bytes(LOG_SECTOR - 12),
  sequenceLow: u32,
});

/** 2.5 BAT: states in bits 0-2, the offset in the file in units of 1 MiB in bits 20-63. */
export const BAT_ENTRY_SIZE = 8;
export const BlockState = {
  notPresent: 0,
  undefined: 1,
  zero: 2,
  unmapped: 3,
  /** What drafts of the specification had for `unmapped`. */
  unmappedDraft: 5,
  fullyPresent: 6,
  partiallyPresent: 7,
} as const;
/** One sector bitmap block covers this many sectors. */
export const SECTORS_PER_BITMAP = 2 ** 23;

/** 2.6.1 Metadata Table: the header, then up to 2047 entries; items are behind the first 64 KiB of the region. */
export const METADATA_SIGNATURE = ascii('metadata');
export const METADATA_TABLE_SIZE = 64 * KIB;
export const MAX_METADATA = 2047;
export const MetadataTableHeader = struct('little', {
  signature: bytes(8),
  reserved: u16,
  entryCount: u16,
  reserved2: bytes(20),
});
export const MetadataTableEntry = struct('little', {
  itemId: bytes(16),
  /** From the start of the region. */
  offset: u32,
  length: u32,
  flags: u32,
  reserved2: u32,
});
export const MetadataFlags = { isUser: 1, isVirtualDisk: 2, isRequired: 4 } as const;

/** 2.6.2 Known metadata items. */
export const Item = {
  fileParameters: guid('caa16737-fa36-4d43-b3b6-33f0aa44e76b'),
  virtualDiskSize: guid('2fa54224-cd1b-4876-b211-5dbed83bf4b8'),
  virtualDiskId: guid('beca12ab-b2e6-4523-93ef-c309e000c746'),
  logicalSectorSize: guid('8141bf1d-a96f-4709-ba47-f233a8faab5f'),
  physicalSectorSize: guid('cda348c7-445d-4471-9cc9-e9885251c556'),
  parentLocator: guid('a8d35f2d-b30b-454d-abf7-d3d84834ab0c'),
} as const;
export const FileParameters = struct('little', { blockSize: u32, flags: u32 });
export const FileFlags = { leaveBlockAllocated: 1, hasParent: 2 } as const;
export const MIN_BLOCK_SIZE = MIB;
export const MAX_BLOCK_SIZE = 256 * MIB;
export const MAX_DISK_SIZE = 64 * 2 ** 40;

/** 2.6.2.6 Parent Locator: a header, then entries that say where keys and values (UTF-16) are, from the item's start. */
export const ParentLocatorHeader = struct('little', {
  locatorType: bytes(16),
  reserved: u16,
  keyValueCount: u16,
});
export const ParentLocatorEntry = struct('little', {
  keyOffset: u32,
  valueOffset: u32,
  keyLength: u16,
  valueLength: u16,
});

/** Entries of the BAT for a disk of `size` bytes without a parent: payload blocks, a bitmap's entry after every chunk. */
export function batEntries(size: number, blockSize: number): number {
  const blocks = Math.ceil(size / blockSize);
  // The reference, and so whoever is to open the file with it, reckons with 32 bits: an empty disk has -1 blocks before
  // its last one.
  return blocks + Math.floor(((blocks - 1) >>> 0) / chunkRatio(blockSize));
}

/** Payload blocks for which there is one sector bitmap block. */
export function chunkRatio(blockSize: number): number {
  return (SECTORS_PER_BITMAP * SECTOR) / blockSize;
}

export function entryOfBlock(block: number, ratio: number): number {
  return block + Math.floor(block / ratio);
}

/** What the reference says of most that is wrong with an image. */
export function invalid(filename: string, what: string): ImageError {
  return new ImageError('corrupt', `Could not open '${filename}': Invalid argument`, {
    errno: 'EINVAL',
    check: what,
  });
}

export function unsupported(filename: string, what: string, hint?: string): ImageError {
  return new ImageError('unsupported', `Could not open '${filename}': Operation not supported`, {
    errno: 'ENOTSUP',
    check: what,
    ...(hint === undefined ? {} : { hint }),
  });
}
