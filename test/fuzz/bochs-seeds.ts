/** Small Bochs images, and where their fields and tables are. */
import { Header } from '../../src/engine/formats/bochs/layout.js';
import { type BochsParts, bochsImage, EXTENT } from '../unit/bochs-image.js';
import { fieldsOf, type Seed } from './seed.js';

function stamp(salt: number): Uint8Array {
  return Uint8Array.from({ length: EXTENT }, (_, at) => (at * 7 + salt * 31 + (at >>> 9)) & 0xff);
}

function seed(name: string, parts: BochsParts): Seed {
  const bytes = bochsImage(parts);
  const count = Header.decode(bytes).catalog;
  return {
    name,
    files: [
      {
        name: 'disk.bochs',
        bytes,
        fields: fieldsOf('header', Header, 0, true),
        tables: [{ name: 'catalog', at: 512, count, width: 4, little: true }],
        texts: [],
      },
    ],
  };
}

const extents = new Map([
  [5, { data: stamp(1) }],
  [0, { data: stamp(2), bitmap: Uint8Array.of(0b10100110) }],
]);

export const bochsSeeds: readonly Seed[] = [
  seed('version 2', { size: 16 * EXTENT - 512, extents }),
  seed('version 1', { size: 16 * EXTENT, extents, version1: true }),
  seed('longer catalog', { size: 3 * EXTENT, extents, catalog: 40 }),
];
