/** Small compressed loop images, and where their fields and tables are. */
import { HEADER_AT, Header } from '../../src/engine/formats/cloop/layout.js';
import { cloopImage } from '../unit/cloop-image.js';
import { fieldsOf, type Seed } from './seed.js';

function seed(name: string, length: number, blockSize: number): Seed {
  const guest = Uint8Array.from({ length }, (_, at) => (at >>> 7) & 0xff);
  const bytes = cloopImage(guest, blockSize);
  return {
    name,
    files: [
      {
        name: 'disk.cloop',
        bytes,
        fields: fieldsOf('header', Header, HEADER_AT, false),
        tables: [
          { name: 'offsets', at: 136, count: Math.ceil(length / blockSize) + 1, width: 8, little: false },
        ],
        texts: [],
      },
    ],
  };
}

export const cloopSeeds: readonly Seed[] = [
  seed('large blocks', 200_000, 65536),
  seed('small blocks', 20_000, 512),
  seed('odd blocks', 50_000, 1536),
];
