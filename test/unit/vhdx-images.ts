/** VHDX images in memory, and ways to damage them. */
import { checksumOf } from '../../src/engine/formats/vhdx/header.js';
import { vhdx } from '../../src/engine/formats/vhdx/index.js';
import {
  ENTRY_SIGNATURE,
  EntryHeader,
  HEADER_AT,
  HEADER_SIZE,
  Header,
  LOG_SECTOR,
  MIB,
  REGION_TABLE_AT,
  REGION_TABLE_SIZE,
  RegionTableHeader,
  ZERO_SIGNATURE,
  ZeroDescriptor,
} from '../../src/engine/formats/vhdx/layout.js';
import type { FormatNode } from '../../src/engine/node/driver.js';
import { ImageNode } from '../../src/engine/node/image.js';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import type { Storage } from '../../src/engine/storage/storage.js';
import { memoryContext } from '../support/open-memory.js';

export const LOG_AT = MIB;
export const BAT_AT = 2 * MIB;
export const METADATA_AT = 3 * MIB;
export const ITEMS_AT = METADATA_AT + 64 * 1024;
export const DATA_AT = 7 * MIB + MIB;

/** With blocks of 1 MiB where the options do not say otherwise. */
export async function make(size: number, options: OptionValues = {}): Promise<MemoryStorage> {
  const file = new MemoryStorage(0, { filename: 'x.vhdx' });
  const none = async (): Promise<Storage> => Promise.reject(new Error('one file is enough'));
  await vhdx.create!({
    file,
    filename: 'x.vhdx',
    size,
    options: { block_size: MIB, ...options },
    createExtra: none,
    openExtra: none,
  });
  return file;
}

export interface Opened {
  readonly node: FormatNode;
  readonly image: ImageNode;
  readonly lines: string[];
}

export async function open(
  file: Storage,
  how: { readonly writable?: boolean; readonly forCheck?: boolean } = {},
): Promise<Opened> {
  const { writable = false, forCheck = false } = how;
  const lines: string[] = [];
  const context = memoryContext(file, { writable, forCheck, say: (line) => lines.push(line) });
  const node = await vhdx.open(context).catch((error: unknown) => {
    throw Object.assign(error as Error, { lines });
  });
  const image = new ImageNode({
    filename: 'x.vhdx',
    path: undefined,
    driver: vhdx,
    format: node,
    file,
    backing: undefined,
    writable,
  });
  return { node, image, lines };
}

export async function bytesOf(file: Storage, at: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length);
  await file.read(at, bytes);
  return bytes;
}

export function u16(value: number): Uint8Array {
  return new Uint8Array(new Uint16Array([value]).buffer);
}
export function u32(value: number): Uint8Array {
  return new Uint8Array(new Uint32Array([value]).buffer);
}
export function u64(value: number | bigint): Uint8Array {
  return new Uint8Array(new BigUint64Array([BigInt(value)]).buffer);
}

async function repatch(
  file: Storage,
  at: number,
  size: number,
  field: number,
  from: number,
  bytes: Uint8Array,
) {
  const whole = await bytesOf(file, at, size);
  whole.set(bytes, from);
  whole.writeUInt32LE(checksumOf(whole, field), field);
  await file.write(at, whole);
}

/** Changes a field of both headers, their checksums along. */
export async function patchHeaders(
  file: Storage,
  field: Parameters<typeof Header.offsetOf>[0],
  bytes: Uint8Array,
  slots: readonly number[] = [0, 1],
): Promise<void> {
  for (const slot of slots) {
    const sum = Header.offsetOf('checksum');
    await repatch(file, HEADER_AT[slot]!, HEADER_SIZE, sum, Header.offsetOf(field), bytes);
  }
}

/** Changes bytes of both region tables, their checksums along. */
export async function patchRegions(file: Storage, from: number, bytes: Uint8Array): Promise<void> {
  for (const at of REGION_TABLE_AT) {
    await repatch(file, at, REGION_TABLE_SIZE, RegionTableHeader.offsetOf('checksum'), from, bytes);
  }
}

/** A log entry of one zero descriptor. */
export function zeroEntry(of: {
  readonly sequence: bigint;
  readonly tail: number;
  readonly logGuid: Uint8Array;
  readonly fileSize: number;
  readonly lastFileOffset?: number;
  readonly at: bigint;
  readonly length: bigint;
}): Uint8Array {
  const bytes = new Uint8Array(LOG_SECTOR);
  EntryHeader.encodeInto(
    {
      signature: ENTRY_SIGNATURE,
      entryLength: LOG_SECTOR,
      tail: of.tail,
      sequenceNumber: of.sequence,
      descriptorCount: 1,
      logGuid: of.logGuid,
      flushedFileOffset: BigInt(of.fileSize),
      lastFileOffset: BigInt(of.lastFileOffset ?? of.fileSize),
    },
    bytes,
  );
  const { sequence: sequenceNumber, at: fileOffset, length: zeroLength } = of;
  const zero = { signature: ZERO_SIGNATURE, zeroLength, fileOffset, sequenceNumber };
  ZeroDescriptor.encodeInto(zero, bytes, EntryHeader.size);
  const sum = EntryHeader.offsetOf('checksum');
  new DataView(bytes.buffer).setUint32(sum, checksumOf(bytes, sum), true);
  return bytes;
}
