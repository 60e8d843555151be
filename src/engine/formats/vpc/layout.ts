/**
 * VHD on disk, after Microsoft's "Virtual Hard Disk Image Format Specification", version 1.0 (October 11, 2006). All
 * values are big-endian. Section names are the specification's.
 */
import { bytes, struct, u8, u16, u32, u64 } from '../../codec/struct.js';

export const SECTOR = 512;

export const FOOTER_COOKIE = 'conectix';
export const HEADER_COOKIE = 'cxsparse';

/** "Hard Disk Footer Format": the last 512 bytes of the file, and, but for fixed disks, a copy of them at its start. */
export const Footer = struct('big', {
  /** "Identifies the original creator of the hard disk image": `conectix`. */
  cookie: bytes(8),
  /** 1: temporary; 2: reserved, "must always be set to 1". */
  features: u32,
  fileFormatVersion: u32,
  /** "Absolute byte offset to the next structure": the dynamic disk header; all ones for fixed disks. */
  dataOffset: u64,
  /** "The creation time": seconds since January 1, 2000 12:00:00 AM in UTC. */
  timeStamp: u32,
  /** "Which application created the hard disk": `vpc `, `vs  `, `win `, ... */
  creatorApplication: bytes(4),
  creatorVersionMajor: u16,
  creatorVersionMinor: u16,
  /** `Wi2k` or `Mac `. */
  creatorHostOs: bytes(4),
  originalSize: u64,
  /** "The current size of the hard disk, in bytes, from the perspective of the virtual machine." */
  currentSize: u64,
  cylinders: u16,
  heads: u8,
  sectorsPerTrack: u8,
  /** See DiskType. */
  diskType: u32,
  /** "One's complement of the sum of all the bytes in the footer without the checksum field." */
  checksum: u32,
  /** "Used to associate a parent hard disk image with its differencing hard disk image(s)." */
  uniqueId: bytes(16),
  savedState: u8,
  reserved: bytes(427),
});

export const DiskType = { fixed: 2, dynamic: 3, differencing: 4 } as const;

/** "Dynamic Disk Header Format". */
export const DynamicHeader = struct('big', {
  cookie: bytes(8),
  /** "Currently unused by existing formats and should be set to 0xFFFFFFFF": all ones. */
  dataOffset: u64,
  /** "Absolute byte offset of the Block Allocation Table". */
  tableOffset: u64,
  headerVersion: u32,
  /** "The maximum entries present in the BAT": the number of blocks of the disk. */
  maxTableEntries: u32,
  /** Bytes of guest data in a block, "does not include the size of the block bitmap". */
  blockSize: u32,
  checksum: u32,
  parentUniqueId: bytes(16),
  /** "The modification time stamp of the parent hard disk." */
  parentTimeStamp: u32,
  reserved1: u32,
  /** UTF-16, big-endian. */
  parentUnicodeName: bytes(512),
  /** "Parent Locator Entry 1" to 8: see ParentLocator. */
  parentLocators: bytes(8 * 24),
  reserved2: bytes(256),
});

/** A "parent locator entry". */
export const ParentLocator = struct('big', {
  platformCode: u32,
  /** Sectors by the specification; some writers have bytes here. Not needed for reading. */
  platformDataSpace: u32,
  /** Bytes. */
  platformDataLength: u32,
  reserved: u32,
  /** "Absolute file offset in bytes". */
  platformDataOffset: u64,
});
export const PARENT_LOCATORS = 8;

/** Platform codes: Windows paths in UTF-16, little-endian, relative to the image and absolute; a file URL in UTF-8. */
export const Platform = { w2ru: 0x57327275, w2ku: 0x57326b75, macX: 0x4d616358 } as const;

/** An entry of the BAT for a block that is not there. All others are the sector at which the block's bitmap begins. */
export const UNUSED = 0xffffffff;
export const ENTRY_BYTES = 4;

export const ALL_ONES = 0xffff_ffff_ffff_ffffn;
/** Of the specification and of the dynamic disk header alike: "must be initialized to 0x00010000". */
export const VERSION = 0x00010000;
/** "Default value is 0x00200000 (indicating a block size of 2 MB)." */
export const DEFAULT_BLOCK_SIZE = 0x200000;

/** The reference's limit: 2040 GiB, a little less than what 32-bit sector numbers can reach. */
export const MAX_SECTORS = 0xff000000;

/**
 * Bytes of the bitmap in front of a block: one bit a sector, "padded to a 512-byte sector boundary". As the reference has it,
 * blocks of less than eight sectors, which would not fill a byte, have none; no writer is known that makes such.
 */
export function bitmapBytes(blockSize: number): number {
  return Math.ceil(Math.floor(blockSize / SECTOR / 8) / SECTOR) * SECTOR;
}

/** "Checksum Calculation", with the field at `field` taken as zero. */
export function checksum(structure: Uint8Array, field: number): number {
  let sum = 0;
  for (let at = 0; at < structure.length; at++) {
    if (at < field || at >= field + 4) sum += structure[at]!;
  }
  return ~sum >>> 0;
}

export function footerChecksum(footer: Uint8Array): number {
  return checksum(footer, Footer.offsetOf('checksum'));
}

export function headerChecksum(header: Uint8Array): number {
  return checksum(header, DynamicHeader.offsetOf('checksum'));
}

/** The bytes of a footer or header, its checksum filled in. */
export function sealFooter(values: Parameters<typeof Footer.encode>[0]): Uint8Array {
  const sum = footerChecksum(Footer.encode(values));
  return Footer.encode({ ...values, checksum: sum });
}

export function sealHeader(values: Parameters<typeof DynamicHeader.encode>[0]): Uint8Array {
  const sum = headerChecksum(DynamicHeader.encode(values));
  return DynamicHeader.encode({ ...values, checksum: sum });
}

export function hasCookie(structure: Uint8Array, cookie: string): boolean {
  return Buffer.from(structure.buffer, structure.byteOffset, 8).toString('latin1') === cookie;
}
