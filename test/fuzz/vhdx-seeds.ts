/**
 * Small VHDX images. A file is megabytes of nothing with structures at fixed places: the seeds are the structures alone, and
 * the file is made of them, with checksums that fit, after they were changed.
 */
import { checksumOf } from '../../src/engine/formats/vhdx/header.js';
import {
  DataDescriptor,
  DESCRIPTOR_SIZE,
  ENTRY_SIGNATURE,
  EntryHeader,
  HEADER_AT,
  HEADER_SIZE,
  Header,
  LOG_SECTOR,
  MetadataTableEntry,
  MetadataTableHeader,
  MIB,
  REGION_TABLE_AT,
  REGION_TABLE_SIZE,
  RegionTableEntry,
  RegionTableHeader,
  ZeroDescriptor,
} from '../../src/engine/formats/vhdx/layout.js';
import { encodeEntry } from '../../src/engine/formats/vhdx/log.js';
import {
  BAT_AT,
  bytesOf,
  ITEMS_AT,
  LOG_AT,
  METADATA_AT,
  make,
  patchHeaders,
  u64,
  zeroEntry,
} from '../unit/vhdx-images.js';
import { type Field, fieldsOf, type Seed, type SeedFile } from './seed.js';

/** Blocks begin here: nothing but a few of them makes the file longer. */
const DATA_AT = 4 * MIB;
const FILE_SIZE = 6 * MIB;
const LOG_BYTES = 5 * LOG_SECTOR;
const BAT_ENTRIES = 16;

/** What is kept of the file: from where in it, and how much. */
const PARTS = [
  { name: 'identifier', at: 0, length: 64 },
  { name: 'header 1', at: HEADER_AT[0], length: Header.size },
  { name: 'header 2', at: HEADER_AT[1], length: Header.size },
  { name: 'regions', at: REGION_TABLE_AT[0], length: RegionTableHeader.size + 3 * RegionTableEntry.size },
  { name: 'metadata', at: METADATA_AT, length: MetadataTableHeader.size + 6 * MetadataTableEntry.size },
  { name: 'items', at: ITEMS_AT, length: 64 },
  { name: 'BAT', at: BAT_AT, length: BAT_ENTRIES * 8 },
  { name: 'log', at: LOG_AT, length: LOG_BYTES },
] as const;

function partAt(name: (typeof PARTS)[number]['name']): number {
  let at = 0;
  for (const part of PARTS) {
    if (part.name === name) return at;
    at += part.length;
  }
  throw new Error(`no part ${name}`);
}

function fixChecksum(file: Buffer, at: number, length: number, field: number): void {
  file.writeUInt32LE(checksumOf(file.subarray(at, at + length), field), at + field);
}

function assemble(parts: Uint8Array): Uint8Array {
  const file = Buffer.alloc(FILE_SIZE);
  let from = 0;
  for (const { at, length } of PARTS) {
    file.set(parts.subarray(from, from + length), at);
    from += length;
  }
  // Some stay wrong: what is not whole must be noticed.
  const wrong = parts.at(32) !== 0;
  if (wrong) return file;
  for (const at of HEADER_AT) fixChecksum(file, at, HEADER_SIZE, Header.offsetOf('checksum'));
  fixChecksum(file, REGION_TABLE_AT[0], REGION_TABLE_SIZE, RegionTableHeader.offsetOf('checksum'));
  for (let at = LOG_AT; at < LOG_AT + LOG_BYTES; at += LOG_SECTOR) {
    const length = file.readUInt32LE(at + EntryHeader.offsetOf('entryLength'));
    if (file.readUInt32LE(at) !== ENTRY_SIGNATURE || length < LOG_SECTOR || length > MIB) continue;
    fixChecksum(file, at, length, EntryHeader.offsetOf('checksum'));
  }
  return file;
}

/** `replay`: the log is full, and has to be replayed. */
async function seed(name: string, options: Record<string, string | boolean>, replay: boolean): Promise<Seed> {
  const file = await make(BAT_ENTRIES * MIB, { block_state_zero: false, ...options });
  await file.write(BAT_AT + 8, u64(DATA_AT + 6));
  await file.write(BAT_AT + 24, u64(DATA_AT + MIB + 6));
  const sequenceFields: Field[] = [];
  if (replay) {
    const logGuid = new Uint8Array(16).fill(3);
    const bat = await bytesOf(file, BAT_AT, LOG_SECTOR);
    const one = { at: 0, sequence: 1n, logGuid, fileSize: FILE_SIZE };
    const data = encodeEntry(one, [
      { at: BAT_AT, data: bat },
      { at: BAT_AT + LOG_SECTOR, data: new Uint8Array(LOG_SECTOR) },
    ]);
    const zero = { sequence: 2n, tail: 0, logGuid, fileSize: FILE_SIZE, at: BigInt(DATA_AT), length: 8192n };
    await file.write(LOG_AT, data);
    await file.write(LOG_AT + data.length, zeroEntry(zero));
    await patchHeaders(file, 'logGuid', logGuid);
    const log = partAt('log');
    sequenceFields.push(
      ...fieldsOf('entry', EntryHeader, log, true),
      ...fieldsOf('descriptor', DataDescriptor, log + EntryHeader.size, true),
      ...fieldsOf('descriptor 2', DataDescriptor, log + EntryHeader.size + DESCRIPTOR_SIZE, true),
      ...fieldsOf('second entry', EntryHeader, log + data.length, true),
      ...fieldsOf('zero', ZeroDescriptor, log + data.length + EntryHeader.size, true),
    );
  }
  const parts = Buffer.concat(await Promise.all(PARTS.map(({ at, length }) => bytesOf(file, at, length))));
  const regions = partAt('regions');
  const metadata = partAt('metadata');
  const items = partAt('items');
  const fields = [
    ...fieldsOf('header 1', Header, partAt('header 1'), true),
    ...fieldsOf('header 2', Header, partAt('header 2'), true),
    ...fieldsOf('regions', RegionTableHeader, regions, true),
    ...[0, 1, 2].flatMap((index) =>
      fieldsOf(
        `region ${index}`,
        RegionTableEntry,
        regions + RegionTableHeader.size + index * RegionTableEntry.size,
        true,
      ),
    ),
    ...fieldsOf('metadata', MetadataTableHeader, metadata, true),
    ...[0, 1, 2, 3, 4, 5].flatMap((index) =>
      fieldsOf(
        `item ${index}`,
        MetadataTableEntry,
        metadata + MetadataTableHeader.size + index * MetadataTableEntry.size,
        true,
      ),
    ),
    { name: 'block size', at: items, width: 4, little: true },
    { name: 'flags', at: items + 4, width: 4, little: true },
    { name: 'disk size', at: items + 8, width: 8, little: true },
    { name: 'logical sector', at: items + 32, width: 4, little: true },
    ...sequenceFields,
  ];
  const table = { name: 'BAT', at: partAt('BAT'), count: BAT_ENTRIES, width: 8, little: true };
  const image: SeedFile = { name: 'disk.vhdx', bytes: parts, fields, tables: [table], texts: [], assemble };
  return { name, files: [image] };
}

export async function cleanSeeds(): Promise<readonly Seed[]> {
  return [await seed('dynamic', {}, false), await seed('zero blocks', { block_state_zero: true }, false)];
}

export async function dirtySeeds(): Promise<readonly Seed[]> {
  return [await seed('log', {}, true)];
}
