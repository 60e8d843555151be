import { bochsImage, EXTENT } from '../../unit/bochs-image.js';
import type { FormatCase } from '../case.js';

const SIZE = 20 * EXTENT - 512;
const data = (salt: number) =>
  Uint8Array.from({ length: EXTENT }, (_, at) => (at + salt + (at >>> 9)) & 0xff);

function sample(name: string, version1: boolean) {
  return {
    name,
    make() {
      const extents = new Map([
        [12, { data: data(1) }],
        [0, { data: data(2), bitmap: Uint8Array.of(0b01100110) }],
        [13, { data: data(3) }],
      ]);
      const guest = Buffer.alloc(SIZE);
      guest.set(data(1), 12 * EXTENT);
      guest.set(data(3), 13 * EXTENT);
      for (const sector of [1, 2, 5, 6]) {
        guest.set(data(2).subarray(sector * 512, sector * 512 + 512), sector * 512);
      }
      return { file: bochsImage({ size: SIZE, extents, version1, catalog: 32 }), guest };
    },
  };
}

export const bochs: FormatCase = {
  format: 'bochs',
  options: [],
  sizes: [],
  does: { write: false, check: false, measure: false, resize: false, backing: false, compress: false },
  samples: [sample('version 1', true), sample('version 2', false)],
};
