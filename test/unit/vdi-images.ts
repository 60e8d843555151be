/** Small VDI images by hand. */
import {
  BLOCK,
  DISCARDED,
  Header,
  SIGNATURE,
  TYPE_DYNAMIC,
  UNALLOCATED,
  VERSION,
} from '../../src/engine/formats/vdi/layout.js';

export interface VdiSpec {
  /** Entries of the block map; undefined: not allocated. */
  readonly map: readonly (number | undefined)[];
  readonly header?: Partial<ReturnType<typeof Header.decode>>;
  /** Blocks that the file has; of each only the first 4 KiB are there where it is the last. */
  readonly blocks?: number;
}

/** Block n is filled with n + 1. */
export function vdiImage(spec: VdiSpec): Buffer {
  const used = spec.map.filter((entry) => entry !== undefined && entry < DISCARDED) as number[];
  const blocks = spec.blocks ?? Math.max(-1, ...used) + 1;
  const file = Buffer.alloc(1024 + (blocks === 0 ? 0 : (blocks - 1) * BLOCK + 4096));
  file.set(
    Header.encode({
      signature: SIGNATURE,
      version: VERSION,
      headerSize: 0x180,
      imageType: TYPE_DYNAMIC,
      mapOffset: 512,
      dataOffset: 1024,
      sectorSize: 512,
      diskSize: BigInt(spec.map.length * BLOCK),
      blockSize: BLOCK,
      blocksInImage: spec.map.length,
      blocksAllocated: used.length,
      ...spec.header,
    }),
  );
  spec.map.forEach((entry, index) => {
    file.writeUInt32LE(entry ?? UNALLOCATED, 512 + index * 4);
  });
  for (let n = 0; n < blocks; n++) file.fill(n + 1, 1024 + n * BLOCK, 1024 + n * BLOCK + 4096);
  return file;
}
