/**
 * The compressed loop device's images, version 2: a script of 128 bytes, this header, a table of offsets, and zlib streams
 * of one block each. All values are big-endian.
 */
import { struct, u32 } from '../../codec/struct.js';

export const SECTOR = 512;

/** The script and its padding, which readers do not look at. */
export const HEADER_AT = 128;

export const Header = struct('big', {
  /** Bytes of guest data in a block. */
  blockSize: u32,
  blockCount: u32,
});

/** One offset more than there are blocks: the last one is where the last block ends. 64 bits each. */
export const OFFSETS_AT = HEADER_AT + Header.size;
export const OFFSET_BYTES = 8;

/** The reference's limits. A block is held in memory whole. */
export const MAX_BLOCK_SIZE = 64 * 1024 * 1024;
export const MAX_BLOCKS = 0x1fffffff;
export const MAX_TABLE_BYTES = 512 * 1024 * 1024;
/** Of a block's stream; deflate makes nothing so much longer. */
export const MAX_PACKED = 2 * MAX_BLOCK_SIZE;
