import type { FormatCase } from '../case.js';

const MiB = 2 ** 20;

export const raw: FormatCase = {
  format: 'raw',
  options: ['', 'preallocation=off', 'preallocation=falloc', 'preallocation=full', 'preallocation=metadata'],
  sizes: [3 * MiB + 1536, 8 * MiB],
  more: { create: 'an image that cannot be created leaves no file' },
  does: { write: true, check: false, measure: true, resize: true, backing: false, compress: false },
};
