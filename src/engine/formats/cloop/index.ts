/** Images of the compressed loop device, version 2, read-only. */
import { ImageError } from '../../error.js';
import type { FormatDriver, FormatNode, OpenContext } from '../../node/driver.js';
import { BlockReader } from './blocks.js';
import {
  HEADER_AT,
  Header,
  MAX_BLOCK_SIZE,
  MAX_BLOCKS,
  MAX_TABLE_BYTES,
  OFFSET_BYTES,
  SECTOR,
} from './layout.js';
import { checkOffsets, Offsets } from './offsets.js';
import { probe } from './probe.js';

async function openCloop({ file, writable }: OpenContext): Promise<FormatNode> {
  if (writable) throw new ImageError('read-only', 'Image is read-only');
  const head = new Uint8Array(Header.size);
  await file.read(HEADER_AT, head);
  const { blockSize, blockCount } = Header.decode(head);
  if (blockSize === 0) throw new ImageError('corrupt', 'block_size cannot be zero');
  if (blockSize % SECTOR !== 0) {
    throw new ImageError('corrupt', `block_size ${blockSize} must be a multiple of ${SECTOR}`);
  }
  if (blockSize > MAX_BLOCK_SIZE) {
    throw new ImageError('limit', `block_size ${blockSize} must be ${MAX_BLOCK_SIZE >>> 20} MB or less`);
  }
  if (blockCount > MAX_BLOCKS) {
    throw new ImageError('limit', `n_blocks ${blockCount} must be ${MAX_BLOCKS} or less`);
  }
  // As many as fill 32 bits with the bytes of their offsets: the reference's count of them is 0 then.
  if (blockCount === MAX_BLOCKS) throw new ImageError('limit', 'Could not allocate offsets table');
  const offsets = blockCount + 1;
  if (offsets * OFFSET_BYTES > MAX_TABLE_BYTES) {
    throw new ImageError('limit', 'image requires too many offsets, try increasing block size');
  }
  await checkOffsets(file, offsets);

  const reader = new BlockReader(file, new Offsets(file, offsets), blockSize);
  return {
    size: blockCount * blockSize,
    unit: 1,
    children: new Map(),
    startsAsZero: false,
    opaque: true,
    map({ at, length }) {
      const block = Math.floor(at / blockSize);
      const skip = at - block * blockSize;
      return {
        kind: 'packed',
        length: Math.min(length, blockSize - skip),
        read: (into) => reader.read(block, skip, into),
      };
    },
    info: () => ({}),
    close: () => Promise.resolve(),
  };
}

export const cloop: FormatDriver = {
  name: 'cloop',
  probe,
  openOptions: [],
  open: openCloop,
  createOptions: [],
  supportsBacking: false,
};
