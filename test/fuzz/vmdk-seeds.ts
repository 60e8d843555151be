/** Small VMDK images of every kind, and where their fields and tables are. */
import {
  CowdHeader,
  GD_AT_END,
  GrainMarker,
  HostedHeader,
  MAGIC_HOSTED,
  SECTOR,
  SeSparseConstHeader,
  SeSparseVolatileHeader,
} from '../../src/engine/formats/vmdk/layout.js';
import { cowd, descriptor, grainsOf, hosted, seSparse, stamp } from '../unit/vmdk-images.js';
import { type Field, fieldsOf, type Seed, type SeedFile, type Table } from './seed.js';

const GRAIN = 8;
const bytesOfGrain = GRAIN * SECTOR;

function table(name: string, sector: number, count: number, width: number, file: Uint8Array): Table[] {
  const at = sector * SECTOR;
  const fits = Math.min(count, Math.floor((file.length - at) / width));
  return fits > 0 ? [{ name, at, count: fits, width, little: true }] : [];
}

function hostedFile(name: string, bytes: Buffer): SeedFile {
  const fields: Field[] = [];
  const tables: Table[] = [];
  const texts = [{ at: SECTOR, length: 20 * SECTOR, fixed: true }];
  const magic = Buffer.alloc(4);
  magic.writeUInt32BE(MAGIC_HOSTED);
  // The header, and in a stream the footer.
  for (let at = bytes.indexOf(magic); at >= 0; at = bytes.indexOf(magic, at + SECTOR)) {
    fields.push(...fieldsOf(at === 0 ? 'header' : 'footer', HostedHeader, at, true));
    const header = HostedHeader.decode(bytes, at);
    if (header.gdOffset === GD_AT_END || header.capacity === 0n) continue;
    const entries = header.numGTEsPerGT;
    const count = Math.ceil(Number(header.capacity) / Number(header.grainSize) / entries);
    const directory = Number(header.gdOffset);
    tables.push(...table('directory', directory, count, 4, bytes));
    for (let i = 0; i < count; i++) {
      const sector = bytes.readUInt32LE(directory * SECTOR + 4 * i);
      if (sector === 0) continue;
      tables.push(...table(`grains${i}`, sector, Math.min(entries, 64), 4, bytes));
      if (header.compressAlgorithm === 0) continue;
      for (let j = 0; j < 64; j++) {
        const grain = bytes.readUInt32LE(sector * SECTOR + 4 * j);
        if (grain > 1) fields.push(...fieldsOf(`marker${j}`, GrainMarker, grain * SECTOR, true));
      }
    }
  }
  return { name, bytes, fields, tables, texts };
}

function cowdFile(name: string, bytes: Buffer): SeedFile {
  const header = CowdHeader.decode(bytes);
  const first = bytes.readUInt32LE(header.gdOffset * SECTOR);
  return {
    name,
    bytes,
    fields: fieldsOf('header', CowdHeader, 0, true),
    tables: [
      ...table('directory', header.gdOffset, header.numGDEntries, 4, bytes),
      ...table('grains', first, 64, 4, bytes),
    ],
    texts: [],
  };
}

function seSparseFile(name: string, bytes: Buffer): SeedFile {
  const header = SeSparseConstHeader.decode(bytes);
  return {
    name,
    bytes,
    fields: [
      ...fieldsOf('header', SeSparseConstHeader, 0, true),
      ...fieldsOf('volatile', SeSparseVolatileHeader, SECTOR, true),
    ],
    tables: [
      ...table('directory', Number(header.grainDirOffset), 2, 8, bytes),
      ...table('grains', Number(header.grainTablesOffset), 64, 8, bytes),
    ],
    texts: [],
  };
}

function textFile(name: string, lines: readonly string[], type: string): SeedFile {
  const bytes = Buffer.from(descriptor({ type, lines }), 'latin1');
  return { name, bytes, fields: [], tables: [], texts: [{ at: 0, length: bytes.length, fixed: false }] };
}

function plainFile(name: string, bytes: Buffer): SeedFile {
  return { name, bytes, fields: [], tables: [], texts: [] };
}

const grains = grainsOf(
  [0, stamp(bytesOfGrain, 1)],
  [3, stamp(bytesOfGrain, 2)],
  [4, stamp(bytesOfGrain, 3)],
  [40, stamp(bytesOfGrain, 4)],
);
const capacity = 64 * GRAIN;
const small = { capacity, grains, grainSectors: GRAIN, entriesPerTable: 32 };

const embedded = descriptor({ lines: [`RW ${capacity} SPARSE "disk.vmdk"`] });

/** Readers look for the content ids in the second sector of a COWD file, which is free. */
function withDescriptor(bytes: Buffer): Buffer {
  bytes.write(embedded, SECTOR, 'latin1');
  return bytes;
}

export const vmdkSeeds: readonly Seed[] = [
  { name: 'monolithicSparse', files: [hostedFile('disk.vmdk', hosted({ ...small, descriptor: embedded }))] },
  {
    name: 'zeroed grains',
    files: [
      hostedFile(
        'disk.vmdk',
        hosted({
          ...small,
          version: 2,
          flags: 7,
          grains: grainsOf([0, stamp(bytesOfGrain, 1)], [1, 'zero']),
          descriptor: embedded,
        }),
      ),
    ],
  },
  {
    name: 'streamOptimized',
    files: [
      hostedFile('disk.vmdk', hosted({ ...small, compress: true, footer: true, descriptor: embedded })),
    ],
  },
  {
    name: 'compressed without footer',
    files: [hostedFile('disk.vmdk', hosted({ ...small, compress: true, descriptor: embedded }))],
  },
  {
    name: 'flat',
    files: [
      textFile(
        'disk.vmdk',
        ['RW 16 FLAT "a.vmdk" 0', 'RW 8 ZERO', 'RW 16 FLAT "b.vmdk" 4'],
        'twoGbMaxExtentFlat',
      ),
      plainFile('a.vmdk', stamp(16 * SECTOR, 5)),
      plainFile('b.vmdk', stamp(20 * SECTOR, 6)),
    ],
  },
  {
    name: 'split sparse',
    files: [
      textFile(
        'disk.vmdk',
        [`RW ${capacity} SPARSE "a.vmdk"`, `RW ${capacity} SPARSE "b.vmdk"`],
        'twoGbMaxExtentSparse',
      ),
      hostedFile('a.vmdk', hosted(small)),
      hostedFile('b.vmdk', hosted({ ...small, grains: grainsOf([63, stamp(bytesOfGrain, 9)]) })),
    ],
  },
  {
    name: 'vmfsSparse',
    files: [
      textFile('disk.vmdk', [`RW ${capacity} VMFSSPARSE "a.vmdk"`], 'vmfsSparse'),
      cowdFile('a.vmdk', cowd({ capacity, grainSectors: GRAIN, grains })),
    ],
  },
  {
    name: 'COWD by itself',
    files: [cowdFile('disk.vmdk', withDescriptor(cowd({ capacity, grainSectors: GRAIN, grains })))],
  },
  {
    name: 'seSparse',
    files: [
      textFile('disk.vmdk', [`RW ${capacity} SESPARSE "a.vmdk"`], 'seSparse'),
      seSparseFile(
        'a.vmdk',
        seSparse({
          capacity,
          grains: grainsOf([0, stamp(4096, 1)], [2, stamp(4096, 2)], [3, 'zero'], [4, 'unmapped']),
        }),
      ),
    ],
  },
];
