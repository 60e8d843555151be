/** Small QED images, and where their fields and tables are. */

import { qed } from '../../src/engine/formats/qed/index.js';
import { Feature, QedHeader } from '../../src/engine/formats/qed/layout.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { createInMemory, imageInMemory } from '../support/open-memory.js';
import { fieldsOf, type Seed, type SeedFile, type Table } from './seed.js';

function qedFile(bytes: Uint8Array): SeedFile {
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const header = QedHeader.decode(bytes);
  const tables: Table[] = [];
  const add = (name: string, at: number, count: number) => {
    tables.push({ name, at, count, width: 8, little: true });
  };
  const l1 = Number(header.l1TableOffset);
  add('L1', l1, 8);
  for (let i = 0; i < 8; i++) {
    const l2 = Number(view.readBigUInt64LE(l1 + i * 8));
    if (l2 !== 0) add(`L2 ${i}`, l2, 64);
  }
  const texts =
    (header.features & Feature.backingFile) === 0n
      ? []
      : [{ at: header.backingFilenameOffset, length: header.backingFilenameSize, fixed: true }];
  return { name: 'disk.qed', bytes, fields: fieldsOf('header', QedHeader, 0, true), tables, texts };
}

async function make(
  name: string,
  size: number,
  options: OptionValues,
  how: { readonly backing?: boolean; readonly needCheck?: boolean } = {},
): Promise<Seed> {
  const backing = how.backing === true ? { filename: 'base.raw', format: 'raw' } : undefined;
  const file = await createInMemory(qed, 'disk.qed', size, options, backing);
  const image = await imageInMemory(qed, file, { writable: true });
  const { format } = image;
  const text = new Uint8Array(30_000).map((_, at) => (at >>> 6) + 1);
  await image.write(0, text);
  await image.write(size - 700, text.subarray(0, 700));
  await image.zero({ at: format.unit * 9, length: format.unit * 2 });
  await image.flush();
  const bytes = new Uint8Array(file.bytes());
  if (how.needCheck === true) bytes[QedHeader.offsetOf('features')]! |= Number(Feature.needCheck);
  await image.close();
  return { name, files: [qedFile(bytes)] };
}

/** The seeds; the same bytes on every machine. */
export async function qedSeeds(): Promise<readonly Seed[]> {
  const small = { cluster_size: 4096, table_size: 2 };
  return Promise.all([
    make('small clusters', 9 << 20, small),
    make('needs check', 1 << 20, small, { needCheck: true }),
    make('large tables', 1 << 20, { cluster_size: 4096, table_size: 16 }),
    make('backing file', 1 << 20, small, { backing: true }),
    make('default', 4 << 20, { table_size: 2 }),
  ]);
}
