import type { FormatCase } from '../case.js';

const MiB = 2 ** 20;

export const qcow: FormatCase = {
  format: 'qcow',
  options: [''],
  sizes: [5 * MiB + 1536, 8 * MiB],
  more: {
    create: 'an image that cannot be created leaves no file',
    compress: 'works, where the reference ends without a word',
  },
  does: { write: true, check: false, measure: false, resize: false, backing: true, compress: false },
};
