import { stamp } from '../../support/stamped.js';
import { dynamic } from '../../unit/vpc-images.js';
import type { FormatCase } from '../case.js';

const MiB = 2 ** 20;
const SECTOR = 512;

function stamped(first: number, sectors: number): Buffer {
  return Buffer.concat(Array.from({ length: sectors }, (_, i) => stamp(first + i, 7)));
}

/** Some blocks, in disorder, of a creator that goes by the current size. */
function sample(name: string, blockSize: number, creator: string) {
  return {
    name,
    make() {
      const size = 10 * blockSize - SECTOR;
      const sectors = blockSize / SECTOR;
      const blocks = new Map(
        [7, 0, 9, 3].map((block) => [block, { data: stamped(block * sectors, sectors) }]),
      );
      const guest = Buffer.alloc(10 * blockSize);
      for (const [block, { data }] of blocks) guest.set(data, block * blockSize);
      return { file: dynamic({ size, blockSize, blocks, creator }), guest: guest.subarray(0, size) };
    },
  };
}

export const vpc: FormatCase = {
  format: 'vpc',
  options: ['', 'force_size=on', 'subformat=fixed', 'subformat=fixed,force_size=on'],
  sizes: [3 * MiB + 1536, 8 * MiB],
  does: { write: true, check: false, measure: false, resize: false, backing: false, compress: false },
  more: { check: 'checksums, the footer at the end, blocks outside of the file and blocks that overlap' },
  samples: [
    sample('blocks of 4 KiB', 4096, 'win '),
    sample('blocks of 512 bytes', 512, 'CTXS'),
    sample('blocks of 512 KiB', 512 * 1024, 'd2v '),
  ],
};
