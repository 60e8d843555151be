/** Small qcow2 images of every kind, made by our own create and writes, and where their fields and tables are. */

import { qcow2 } from '../../src/engine/formats/qcow2/index.js';
import {
  BitmapEntry,
  BitmapsExtension,
  ExtensionHeader,
  ExtensionType,
  HeaderExtra,
  HeaderV2,
  HeaderV3,
  SnapshotEntry,
  SnapshotExtra,
} from '../../src/engine/formats/qcow2/layout.js';
import { ImageNode } from '../../src/engine/node/image.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { sampleText } from '../support/codec-streams.js';
import { qcow2WithSnapshots } from './qcow2-fixture.js';
import { type Field, fieldsOf, type Seed, type SeedFile, type Table } from './seed.js';

const DATA_FILE = 'data.raw';
/** Bits 9 to 55 of L1, L2 and refcount table entries. */
const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
const MAX_TABLES = 12;

function qcow2File(name: string, bytes: Uint8Array): SeedFile {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const header = HeaderV2.decode(bytes);
  const fields: Field[] = fieldsOf('header', HeaderV2, 0, false);
  const tables: Table[] = [];
  const cluster = 2 ** header.clusterBits;
  const add = (table: string, at: number, count: number, width: number) => {
    const fits = Math.min(count, Math.floor((bytes.length - at) / width));
    if (fits > 0) tables.push({ name: table, at, count: fits, width, little: false });
  };
  let order = 4;
  let l2Width = 8;
  let at = HeaderV2.size;
  if (header.version >= 3) {
    const more = HeaderV3.decode(bytes, at);
    fields.push(
      ...fieldsOf('header', HeaderV3, at, false),
      ...fieldsOf('header', HeaderExtra, at + HeaderV3.size, false),
    );
    order = more.refcountOrder;
    if ((more.incompatible & 16n) !== 0n) l2Width = 16;
    at = more.headerLength;
  }
  for (let limit = 0; limit < 20 && at + ExtensionHeader.size <= cluster; limit++) {
    const extension = ExtensionHeader.decode(bytes, at);
    fields.push(...fieldsOf(`extension${limit}`, ExtensionHeader, at, false));
    const data = at + ExtensionHeader.size;
    if (extension.type === ExtensionType.end) break;
    if (extension.type === ExtensionType.bitmaps) {
      fields.push(...fieldsOf('bitmaps', BitmapsExtension, data, false));
      const { count, directoryOffset } = BitmapsExtension.decode(bytes, data);
      let entryAt = Number(directoryOffset);
      for (let i = 0; i < count; i++) {
        fields.push(...fieldsOf(`bitmap${i}`, BitmapEntry, entryAt, false));
        const entry = BitmapEntry.decode(bytes, entryAt);
        add(`bitmap table ${i}`, Number(entry.tableOffset), entry.tableSize, 8);
        entryAt += Math.ceil((BitmapEntry.size + entry.extraDataSize + entry.nameSize) / 8) * 8;
      }
    }
    at = data + Math.ceil(extension.length / 8) * 8;
  }
  const l1 = (label: string, offset: bigint, count: number) => {
    add(label, Number(offset), count, 8);
    for (let i = 0, found = 0; i < count && found < MAX_TABLES; i++) {
      const l2 = Number(view.getBigUint64(Number(offset) + 8 * i) & OFFSET_MASK);
      if (l2 === 0 || l2 >= bytes.length) continue;
      found++;
      // Entry words one by one: with extended entries the descriptors and the bitmaps.
      add(`${label} L2 ${i}`, l2, Math.min(cluster / l2Width, 64) * (l2Width / 8), 8);
    }
  };
  l1('L1', header.l1TableOffset, header.l1Size);
  add(
    'refcount table',
    Number(header.refcountTableOffset),
    Math.min((header.refcountTableClusters * cluster) / 8, 64),
    8,
  );
  for (let i = 0; i < MAX_TABLES; i++) {
    const block = Number(view.getBigUint64(Number(header.refcountTableOffset) + 8 * i) & OFFSET_MASK);
    if (block !== 0) add(`refcount block ${i}`, block, 128, Math.max(1, 2 ** order / 8));
  }
  let snapshotAt = Number(header.snapshotsOffset);
  for (let i = 0; i < header.snapshotCount; i++) {
    fields.push(
      ...fieldsOf(`snapshot${i}`, SnapshotEntry, snapshotAt, false),
      ...fieldsOf(`snapshot${i}`, SnapshotExtra, snapshotAt + SnapshotEntry.size, false),
    );
    const entry = SnapshotEntry.decode(bytes, snapshotAt);
    l1(`snapshot${i} L1`, entry.l1TableOffset, entry.l1Size);
    snapshotAt +=
      Math.ceil((SnapshotEntry.size + entry.extraDataSize + entry.idSize + entry.nameSize) / 8) * 8;
  }
  return { name, bytes, fields, tables, texts: [] };
}

interface Making {
  readonly name: string;
  readonly size: number;
  readonly options: OptionValues;
  readonly compress?: boolean;
  readonly backing?: { readonly filename: string; readonly format: string };
}

async function make({ name, size, options, compress, backing }: Making): Promise<Seed> {
  const file = new MemoryStorage(0, { filename: 'disk.qcow2' });
  let data = new MemoryStorage(0, { filename: DATA_FILE });
  await qcow2.create!({
    file,
    filename: 'disk.qcow2',
    size,
    options,
    ...(backing === undefined ? {} : { backing }),
    createExtra: async () => data,
    openExtra: async () => data,
  });
  // Creating has closed it.
  data = data.clone();
  const format = await qcow2.open({
    file,
    writable: true,
    options: {},
    forCheck: false,
    metadataOnly: false,
    openChild: async (_child, recorded) => (recorded === undefined ? undefined : data),
    warn: () => undefined,
  });
  const image = new ImageNode({
    filename: 'disk.qcow2',
    path: undefined,
    driver: qcow2,
    format,
    file: file,
    backing: undefined,
    writable: true,
  });
  const text = sampleText(6000);
  const unit = format.unit;
  await image.write(0, text.subarray(0, 700));
  await image.write(Math.floor(size / 2), text);
  await image.write(size - 512, text.subarray(0, 512));
  await image.zero({ at: unit * 2, length: unit });
  if (compress === true && format.pack !== undefined) {
    const whole = new Uint8Array(format.pack.unit);
    whole.set(text.subarray(0, whole.length));
    const packed = await format.pack.compress(whole);
    if (packed !== undefined) {
      for (let i = 4; i < 7; i++) await image.writePacked(i * format.pack.unit, packed);
    }
  }
  await image.flush();
  const bytes = file.bytes();
  const dataBytes = options.data_file === undefined ? undefined : data.bytes();
  await image.close();
  const files = [qcow2File('disk.qcow2', bytes)];
  if (dataBytes !== undefined) {
    files.push({ name: DATA_FILE, bytes: dataBytes, fields: [], tables: [], texts: [] });
  }
  return { name, files };
}

/** The seeds; the same bytes on every machine. */
export async function qcow2Seeds(): Promise<readonly Seed[]> {
  const KIB = 1024;
  const made = await Promise.all([
    make({ name: 'default', size: 1024 * KIB, options: {} }),
    make({ name: '512-byte clusters', size: 300 * KIB, options: { cluster_size: 512 } }),
    make({ name: 'refcount_bits 1', size: 300 * KIB, options: { cluster_size: 512, refcount_bits: 1 } }),
    make({
      name: 'refcount_bits 64',
      size: 300 * KIB,
      options: { cluster_size: 1024, refcount_bits: 64, lazy_refcounts: true },
    }),
    make({ name: 'extended L2', size: 2048 * KIB, options: { cluster_size: 16384, extended_l2: true } }),
    make({
      name: 'version 2',
      size: 400 * KIB,
      options: { cluster_size: 4096, compat: 'v2' },
      compress: true,
    }),
    make({ name: 'zlib', size: 400 * KIB, options: { cluster_size: 4096 }, compress: true }),
    make({
      name: 'zstd',
      size: 400 * KIB,
      options: { cluster_size: 4096, compression_type: 'zstd' },
      compress: true,
    }),
    make({ name: 'data file', size: 200 * KIB, options: { cluster_size: 4096, data_file: DATA_FILE } }),
    make({
      name: 'backing file',
      size: 200 * KIB,
      options: { cluster_size: 4096 },
      backing: { filename: 'base.raw', format: 'raw' },
    }),
  ]);
  return [...made, { name: 'snapshots and bitmaps', files: [qcow2File('disk.qcow2', qcow2WithSnapshots)] }];
}
