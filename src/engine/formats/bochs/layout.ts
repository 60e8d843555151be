/**
 * Bochs "growing" disk images: a redolog without the disk that others are laid over. After "Harddisk Images based on
 * redologs" of the Bochs Developers Guide. All values are little-endian.
 */
import { bytes, struct, u32, u64 } from '../../codec/struct.js';

export const SECTOR = 512;

/** The header is as long as it says itself; what is known of it fits in a sector. */
export const Header = struct('little', {
  /** "Bochs Virtual HD Image". Texts end at a zero byte. */
  magic: bytes(32),
  /** "Redolog" */
  type: bytes(16),
  /** "Growing", "Undoable", "Volatile" */
  subtype: bytes(16),
  version: u32,
  /** Bytes; the catalog follows. */
  header: u32,
  /** Entries of the catalog. */
  catalog: u32,
  /** Bytes of the bitmap in front of each extent's data. */
  bitmap: u32,
  /** Bytes of guest data in an extent. */
  extent: u32,
  /** Version 2 has a time stamp here; in version 1 the disk's size begins here. */
  timestamp: u32,
  /** Bytes. */
  disk: u64,
});

/** The same in version 1 from `timestamp` on. */
export const DISK_V1_AT = Header.offsetOf('timestamp');

export const VERSION_1 = 0x00010000;
export const VERSION_2 = 0x00020000;

/** An entry of the catalog for an extent that is not there. All others count extents from the end of the catalog. */
export const UNUSED = 0xffffffff;

function text(field: Uint8Array): string {
  const end = field.indexOf(0);
  return Buffer.from(end < 0 ? field : field.subarray(0, end)).toString('latin1');
}

/** `head` has at least a header. */
export function isBochs(head: Uint8Array): boolean {
  const { magic, type, subtype, version } = Header.decode(head);
  return (
    text(magic) === 'Bochs Virtual HD Image' &&
    text(type) === 'Redolog' &&
    text(subtype) === 'Growing' &&
    (version === VERSION_1 || version === VERSION_2)
  );
}
