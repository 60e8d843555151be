import type { FormatCase } from '../case.js';

const MiB = 2 ** 20;

export const vdi: FormatCase = {
  format: 'vdi',
  options: ['', 'static=on'],
  sizes: [5 * MiB + 1536, 8 * MiB],
  does: { write: true, check: true, measure: false, resize: false, backing: false, compress: false },
};
