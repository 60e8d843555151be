import type { FormatCase } from '../case.js';

const MiB = 2 ** 20;

export const vhdx: FormatCase = {
  format: 'vhdx',
  options: [
    '',
    'subformat=fixed',
    'block_size=1M',
    'block_size=2M,log_size=3M',
    'block_state_zero=off',
    'subformat=fixed,block_state_zero=off,block_size=1M',
  ],
  sizes: [5 * MiB + 1536, 20 * MiB],
  does: { write: true, check: true, measure: false, resize: false, backing: false, compress: false },
};
