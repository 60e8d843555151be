/**
 * Parallels expandable images: QEMU's docs/interop/parallels.rst, sections "Header", "BAT", "Format Extension" and "Dirty
 * bitmaps feature". All numbers are little-endian; offsets and sizes are in sectors where nothing else is said.
 */
import { bytes, struct, u32, u64 } from '../../codec/struct.js';

export const SECTOR = 512;
export const MAGIC_V1 = 'WithoutFreeSpace';
export const MAGIC_EXT = 'WithouFreSpacExt';
export const VERSION = 2;

/** "Header": the BAT follows it at once. */
export const Header = struct('little', {
  magic: bytes(16),
  version: u32,
  /** Disk geometry for the guest. */
  heads: u32,
  cylinders: u32,
  /** Cluster size. */
  tracks: u32,
  batEntries: u32,
  /** Disk size; of MAGIC_V1 images the lower 32 bits count. */
  sectors: u64,
  inUse: u32,
  /** Where the data area begins; 0 in MAGIC_V1 images: right after the BAT. */
  dataOff: u32,
  flags: u32,
  /** Format Extension cluster, 0 where there is none. */
  extOff: u64,
});
export type Header = ReturnType<typeof Header.decode>;

/** in_use of an image that somebody has open for writing. */
export const IN_USE = 0x746f_6e59;

/** Clusters are no larger than this many sectors. */
export const MAX_TRACKS = Math.floor(0x7fff_ffff / 513);
/** The BAT has fewer entries than this. */
export const MAX_BAT_ENTRIES = Math.floor(0x7fff_ffff / 4);
/** The geometry that new images have. */
export const HEADS = 16;
export const SECTORS_PER_CYLINDER = 32;

/** "Format Extension". */
export const ExtensionHeader = struct('little', { magic: u64, checksum: bytes(16) });
export const EXTENSION_MAGIC = 0xab23_4cef_23dc_ea87n;

/** A feature section of it; its data follows, padded to 8 bytes. */
export const Feature = struct('little', { magic: u64, flags: u64, dataSize: u32, unused: u32 });
export const FEATURE_END = 0n;
export const FEATURE_BITMAP = 0x2038_5fae_252c_b34an;

/** "Dirty bitmaps feature"; the L1 table follows, 8 bytes an entry. */
export const BitmapFeature = struct('little', { size: u64, id: bytes(16), granularity: u32, l1Size: u32 });
