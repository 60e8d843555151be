import type { FormatCase } from '../case.js';

const MiB = 2 ** 20;

export const parallels: FormatCase = {
  format: 'parallels',
  options: ['', 'cluster_size=64k', 'cluster_size=4k', 'cluster_size=63k'],
  sizes: [5 * MiB + 1536, 8 * MiB],
  does: { write: true, check: true, measure: false, resize: false, backing: false, compress: false },
};
