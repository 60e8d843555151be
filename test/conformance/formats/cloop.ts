import { stamp } from '../../support/stamped.js';
import { cloopImage } from '../../unit/cloop-image.js';
import type { FormatCase } from '../case.js';

function sample(blockSize: number, blocks: number) {
  return {
    name: `blocks of ${blockSize} bytes`,
    make() {
      const sectors = (blockSize / 512) * blocks;
      const guest = Buffer.concat(Array.from({ length: sectors }, (_, i) => stamp(i, 3)));
      return { file: cloopImage(guest, blockSize), guest };
    },
  };
}

export const cloop: FormatCase = {
  format: 'cloop',
  options: [],
  sizes: [],
  does: { write: false, check: false, measure: false, resize: false, backing: false, compress: false },
  samples: [sample(65536, 20), sample(1536, 100), sample(2 ** 20, 3)],
};
