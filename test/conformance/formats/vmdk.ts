import { expected, type Grains, grainsOf, type HostedParts, hosted, stamp } from '../../unit/vmdk-images.js';
import type { FormatCase } from '../case.js';

const MiB = 2 ** 20;

function sample(name: string, parts: Omit<HostedParts, 'grains'>) {
  const sectors = parts.grainSectors ?? 128;
  const bytes = sectors * 512;
  const numbers = [0, 2, 3, 9, 515, 700].filter((grain) => (grain + 1) * sectors <= parts.capacity);
  const grains: Grains = grainsOf(...numbers.map((grain) => [grain, stamp(bytes, grain + 1)] as const));
  return {
    name,
    make: () => ({
      file: hosted({ ...parts, grains }),
      guest: expected(parts.capacity * 512, bytes, grains),
    }),
  };
}

export const vmdk: FormatCase = {
  format: 'vmdk',
  options: [
    '',
    'zeroed_grain=on',
    'compat6=on',
    'adapter_type=lsilogic',
    'adapter_type=buslogic,hwversion=7,toolsversion=9',
    'adapter_type=legacyESX',
    'subformat=monolithicSparse',
    'subformat=monolithicFlat',
    'subformat=twoGbMaxExtentSparse',
    'subformat=twoGbMaxExtentSparse,zeroed_grain=on',
    'subformat=twoGbMaxExtentFlat',
    'subformat=streamOptimized',
    'subformat=streamOptimized,compat6=on',
  ],
  sizes: [3 * MiB + 1536, 8 * MiB],
  does: { write: true, check: true, measure: false, resize: false, backing: true, compress: true },
  more: {
    compress: 'a flat subformat is refused by name, not as an invalid cluster size, and leaves no file',
  },
  refused: {
    'sample stream': {
      backing:
        'commit into a finished stream: the reference writes behind its footer, and cannot open it any more',
    },
    'sample version3': {
      backing:
        'commit into it: version 3 says that somebody tracks its changes; the reference forgets to ask',
    },
  },
  except: {
    'subformat=monolithicFlat': ['backing', 'compress'],
    'subformat=twoGbMaxExtentFlat': ['backing', 'compress'],
  },
  samples: [
    sample('stream', { capacity: 1301 * 128, compress: true, footer: true }),
    sample('stream-no-footer', { capacity: 700 * 128, compress: true }),
    sample('stream-no-markers', { capacity: 64 * 128, compress: true, markers: false }),
    sample('small-grains', { capacity: 1000 * 8, grainSectors: 8, version: 1 }),
    sample('version2', { capacity: 1000 * 8, grainSectors: 8, version: 2 }),
    sample('version3', { capacity: 1000 * 128, version: 3 }),
  ],
};
