/** Small qcow images, and where their fields and tables are. */
import { qcow } from '../../src/engine/formats/qcow/index.js';
import { QcowHeader } from '../../src/engine/formats/qcow/layout.js';
import { createInMemory, imageInMemory } from '../support/open-memory.js';
import { fieldsOf, type Seed, type SeedFile, type Table } from './seed.js';

function qcowFile(bytes: Uint8Array): SeedFile {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const header = QcowHeader.decode(bytes);
  const tables: Table[] = [];
  const add = (name: string, at: number, count: number) => {
    tables.push({ name, at, count, width: 8, little: false });
  };
  const l1 = Number(header.l1TableOffset);
  const entries = Math.ceil(Number(header.size) / 2 ** (header.clusterBits + header.l2Bits));
  add('L1', l1, entries);
  for (let i = 0; i < entries; i++) {
    const l2 = Number(view.readBigUInt64BE(l1 + i * 8));
    if (l2 !== 0) add(`L2 ${i}`, l2, 64);
  }
  const texts =
    header.backingFileOffset === 0n
      ? []
      : [{ at: Number(header.backingFileOffset), length: header.backingFileSize, fixed: true }];
  return { name: 'disk.qcow', bytes, fields: fieldsOf('header', QcowHeader, 0, false), tables, texts };
}

async function make(
  name: string,
  size: number,
  how: { readonly backing?: boolean; readonly compress?: boolean } = {},
): Promise<Seed> {
  const backing = how.backing === true ? { filename: 'base.raw', format: 'raw' } : undefined;
  const file = await createInMemory(qcow, 'disk.qcow', size, {}, backing);
  const image = await imageInMemory(qcow, file, { writable: true });
  const { format } = image;
  const text = new Uint8Array(30_000).map((_, at) => (at >>> 6) + 1);
  await image.write(0, text);
  await image.write(size - 700, text.subarray(0, 700));
  if (how.compress === true) {
    const { unit } = format;
    const packed = await format.pack!.compress(text.subarray(0, unit));
    for (let i = 10; i < 16; i++) await image.writePacked(i * unit, packed!);
  }
  await image.flush();
  const bytes = new Uint8Array(file.bytes());
  await image.close();
  return { name, files: [qcowFile(bytes)] };
}

/** The seeds; the same bytes on every machine. */
export async function qcowSeeds(): Promise<readonly Seed[]> {
  return Promise.all([
    make('default', 5 << 20),
    make('compressed', 1 << 20, { compress: true }),
    make('backing file', 1 << 20, { backing: true }),
  ]);
}
