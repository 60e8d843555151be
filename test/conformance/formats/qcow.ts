import type { FormatCase } from '../case.js';

const MiB = 2 ** 20;

export const qcow: FormatCase = {
  format: 'qcow',
  options: [''],
  sizes: [5 * MiB + 1536, 8 * MiB],
  does: { write: true, check: false, measure: false, resize: false, backing: true, compress: true },
};
