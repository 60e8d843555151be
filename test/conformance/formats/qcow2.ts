import type { FormatCase } from '../case.js';

const MiB = 2 ** 20;

export const qcow2: FormatCase = {
  format: 'qcow2',
  options: [
    '',
    'compat=0.10',
    'compat=0.10,cluster_size=512',
    'cluster_size=4k',
    'cluster_size=2M',
    'refcount_bits=1',
    'refcount_bits=64,cluster_size=512',
    'lazy_refcounts=on',
    'extended_l2=on',
    'extended_l2=on,cluster_size=16k',
    'compression_type=zstd',
    'preallocation=metadata',
    'preallocation=falloc',
    'preallocation=full,extended_l2=on',
    'data_file=data.bin',
    'data_file=data.bin,data_file_raw=on',
  ],
  sizes: [5 * MiB + 1536, 8 * MiB],
  does: { write: true, check: true, measure: true, resize: true, backing: true, compress: true },
  more: {
    compress: 'with a data file compression is refused as such',
    backing: 'one data file for an image and its backing file: the error names the latter',
  },
  except: {
    'refcount_bits=1': ['compress'],
    'data_file=data.bin': ['compress'],
    'data_file=data.bin,data_file_raw=on': ['backing', 'compress'],
  },
};
