import type { FormatCase } from '../case.js';

const MiB = 2 ** 20;

export const qed: FormatCase = {
  format: 'qed',
  options: [
    '',
    'cluster_size=4k,table_size=2',
    'cluster_size=4k,table_size=16',
    'table_size=16',
    'cluster_size=1M,table_size=2',
  ],
  sizes: [5 * MiB + 1536, 8 * MiB],
  does: { write: true, check: true, measure: false, resize: true, backing: true, compress: false },
};
