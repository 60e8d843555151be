/** Small VHD images of every kind, and where their fields and tables are. */
import {
  DynamicHeader,
  Footer,
  hasCookie,
  ParentLocator,
  Platform,
  sealFooter,
} from '../../src/engine/formats/vpc/layout.js';
import { BLOCK, dynamic, fixed } from '../unit/vpc-images.js';
import { type Field, fieldsOf, type Seed, type SeedFile, type Table } from './seed.js';

const HEADER_AT = Footer.size;
const TABLE_AT = HEADER_AT + DynamicHeader.size;

function stamp(length: number, salt: number): Uint8Array {
  return Uint8Array.from({ length }, (_, at) => (at * 7 + salt * 31 + (at >>> 9)) & 0xff);
}

function dynamicFile(name: string, bytes: Buffer, entries: number, locators = 0): SeedFile {
  const fields: Field[] = [
    ...fieldsOf('footer', Footer, 0, false),
    ...fieldsOf('header', DynamicHeader, HEADER_AT, false),
    ...fieldsOf('tail', Footer, bytes.length - Footer.size, false),
  ];
  for (let index = 0; index < locators; index++) {
    const at = HEADER_AT + DynamicHeader.offsetOf('parentLocators') + index * ParentLocator.size;
    fields.push(...fieldsOf(`locator${index}`, ParentLocator, at, false));
  }
  const tables: Table[] = [{ name: 'table', at: TABLE_AT, count: entries, width: 4, little: false }];
  return { name, bytes, fields, tables, texts: [], assemble: resealed };
}

/** A wrong checksum is all that would be found of most mutants: some have it put right. */
function resealed(parts: Uint8Array): Uint8Array {
  const bytes = Uint8Array.from(parts);
  if (bytes.reduce((sum, byte) => sum + byte, 0) % 5 === 0) return bytes;
  for (const at of [0, bytes.length - Footer.size]) {
    if (at < 0 || bytes.length < Footer.size) continue;
    const footer = bytes.subarray(at, at + Footer.size);
    if (hasCookie(footer, 'conectix')) footer.set(sealFooter(Footer.decode(footer)));
  }
  return bytes;
}

const blocks = new Map([
  [3, { data: stamp(BLOCK, 1) }],
  [0, { data: stamp(BLOCK, 2), bitmap: stamp(512, 5) }],
  [9, { data: stamp(BLOCK, 3) }],
]);
const size = 16 * BLOCK - 1024;
const base = dynamic({ size, blocks });
const child = {
  size,
  blocks: new Map([[3, { data: stamp(BLOCK, 7), bitmap: stamp(512, 9) }]]),
  parentId: base.subarray(Footer.offsetOf('uniqueId'), Footer.offsetOf('uniqueId') + 16),
};

export const vpcSeeds: readonly Seed[] = [
  { name: 'dynamic', files: [dynamicFile('disk.vhd', base, 16)] },
  {
    name: 'dynamic by geometry',
    files: [dynamicFile('disk.vhd', dynamic({ size, blocks, creator: 'vpc ', geometry: [2, 3, 17] }), 16)],
  },
  {
    name: 'small blocks',
    files: [
      dynamicFile(
        'disk.vhd',
        dynamic({ size: 9 * 512, blockSize: 512, blocks: new Map([[4, { data: stamp(512, 1) }]]) }),
        9,
      ),
    ],
  },
  {
    name: 'with a gap',
    files: [dynamicFile('disk.vhd', dynamic({ size, blocks, gap: stamp(10_240, 3) }), 16)],
  },
  {
    name: 'differencing',
    files: [
      dynamicFile('disk.vhd', dynamic({ ...child, parent: '.\\base.vhd' }), 16, 1),
      dynamicFile('base.vhd', base, 16),
    ],
  },
  {
    name: 'differencing, absolute',
    files: [
      dynamicFile(
        'disk.vhd',
        dynamic({
          ...child,
          locators: [{ code: Platform.w2ku, data: Buffer.from('C:\\disks\\base.vhd', 'utf16le') }],
        }),
        16,
        1,
      ),
      dynamicFile('base.vhd', base, 16),
    ],
  },
  {
    name: 'fixed',
    files: [
      (() => {
        const bytes = fixed(stamp(20 * 512, 4));
        const fields = fieldsOf('footer', Footer, bytes.length - Footer.size, false);
        return { name: 'disk.vhd', bytes, fields, tables: [], texts: [], assemble: resealed };
      })(),
    ],
  },
];
