/** Internal snapshots: their table, and read-only views of the guest as it was. */
import { ImageError } from '../../error.js';
import type { SnapshotInfo } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import { cString, type Header } from './header.js';
import type { Image } from './image.js';
import {
  type Geometry,
  loadTable,
  MAX_L1_BYTES,
  MAX_SNAPSHOT_EXTRA_BYTES,
  MAX_SNAPSHOT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  NO_ICOUNT,
  SnapshotEntry,
  SnapshotExtra,
  tableBytes,
} from './layout.js';

export interface Snapshot {
  readonly info: SnapshotInfo;
  readonly l1TableOffset: bigint;
  readonly l1Size: number;
  /** Bytes of extra data that the entry in the file has; `encodeSnapshots` writes more where it is short. */
  readonly extraBytes: number;
  /** Extra data behind what is known here: kept as it is. */
  readonly unknownExtra: Uint8Array;
}

export interface SnapshotTable {
  readonly snapshots: readonly Snapshot[];
  /** Length of the table in the file. */
  readonly bytes: number;
}

/** The table is read in pieces of this size, so that a small table in a huge claim costs little. */
const CHUNK = 64 << 10;

/** Reads the snapshot table, whose offset the header check has accepted. */
export async function readSnapshots(file: Storage, header: Header): Promise<SnapshotTable> {
  if (header.snapshotCount === 0) return { snapshots: [], bytes: 0 };
  const base = Number(header.snapshotsOffset);
  let buffer = new Uint8Array(0);
  let bufferAt = 0;
  const take = async (at: number, length: number): Promise<Uint8Array> => {
    if (at < bufferAt || at + length > bufferAt + buffer.byteLength) {
      buffer = new Uint8Array(Math.max(length, CHUNK));
      bufferAt = at;
      await file.read(base + at, buffer);
    }
    return buffer.subarray(at - bufferAt, at - bufferAt + length);
  };
  const snapshots: Snapshot[] = [];
  let at = 0;
  for (let index = 0; index < header.snapshotCount; index++) {
    at = Math.ceil(at / 8) * 8;
    const entry = SnapshotEntry.decode(await take(at, SnapshotEntry.size));
    at += SnapshotEntry.size;
    if (entry.extraDataSize > MAX_SNAPSHOT_EXTRA_BYTES) {
      throw new ImageError('corrupt', `Too much extra metadata in snapshot table entry ${index}`, {
        path: file.filename,
        hint: 'You can force-remove this extra metadata with qemu-img check -r all',
      });
    }
    const rest = await take(at, entry.extraDataSize + entry.idSize + entry.nameSize);
    at += rest.byteLength;
    if (at > MAX_SNAPSHOT_TABLE_BYTES) {
      throw new ImageError('corrupt', 'Snapshot table is too big', {
        path: file.filename,
        hint: `You can force-remove all ${header.snapshotCount - index} overhanging snapshots with qemu-img check -r all`,
      });
    }
    const known = new Uint8Array(SnapshotExtra.size).fill(0xff);
    known.set(rest.subarray(0, Math.min(SnapshotExtra.size, entry.extraDataSize)));
    const extra = SnapshotExtra.decode(known);
    const has = (bytes: number) => entry.extraDataSize >= bytes;
    const idAt = entry.extraDataSize;
    const info: SnapshotInfo = {
      id: cString(rest.subarray(idAt, idAt + entry.idSize)),
      name: cString(rest.subarray(idAt + entry.idSize)),
      vmStateSize: has(8) ? clamp(extra.vmStateSizeLarge) : entry.vmStateSize,
      dateSec: entry.dateSec,
      dateNsec: entry.dateNsec,
      vmClockNsec: entry.vmClockNsec,
      diskSize: has(16) ? clamp(extra.diskSize) : clamp(header.size),
      ...(has(24) && extra.icount !== NO_ICOUNT ? { icount: extra.icount } : {}),
    };
    snapshots.push({
      info,
      l1TableOffset: entry.l1TableOffset,
      l1Size: entry.l1Size,
      extraBytes: entry.extraDataSize,
      unknownExtra: rest.slice(Math.min(SnapshotExtra.size, entry.extraDataSize), entry.extraDataSize),
    });
  }
  return { snapshots, bytes: at };
}

/** For display only: a value too large to be exact cannot be true. */
function clamp(value: bigint): number {
  return Number(value > BigInt(Number.MAX_SAFE_INTEGER) ? BigInt(Number.MAX_SAFE_INTEGER) : value);
}

/** The table as it is stored; every entry has all the extra data that is known. Throws `limit` where it gets too large. */
export function encodeSnapshots(snapshots: readonly Snapshot[]): Uint8Array {
  const toBytes = new TextEncoder();
  const parts = snapshots.map(({ info, l1TableOffset, l1Size, unknownExtra }) => {
    const known = SnapshotExtra.encode({
      vmStateSizeLarge: BigInt(info.vmStateSize),
      diskSize: BigInt(info.diskSize),
      icount: info.icount ?? NO_ICOUNT,
    });
    const id = toBytes.encode(info.id);
    const name = toBytes.encode(info.name);
    const fixed = SnapshotEntry.encode({
      l1TableOffset,
      l1Size,
      idSize: id.byteLength,
      nameSize: name.byteLength,
      dateSec: info.dateSec,
      dateNsec: info.dateNsec,
      vmClockNsec: info.vmClockNsec,
      vmStateSize: info.vmStateSize < 2 ** 32 ? info.vmStateSize : 0,
      extraDataSize: known.byteLength + unknownExtra.byteLength,
    });
    const entry = Buffer.concat([fixed, known, unknownExtra, id, name]);
    return Buffer.concat([entry, new Uint8Array(-entry.byteLength & 7)]);
  });
  const table = Buffer.concat(parts);
  if (snapshots.length > MAX_SNAPSHOTS || table.byteLength > MAX_SNAPSHOT_TABLE_BYTES) {
    throw new ImageError('limit', 'File too large', { errno: 'EFBIG' });
  }
  return table;
}

/** Reads a snapshot's L1 table after checking that it can be one. */
export async function readSnapshotL1(image: Image, snapshot: Snapshot): Promise<Uint32Array> {
  const { l1TableOffset, l1Size } = snapshot;
  if (l1Size * 8 > MAX_L1_BYTES) {
    throw new ImageError('corrupt', 'Snapshot L1 table too large', { path: image.file.filename });
  }
  const limit = BigInt(Number.MAX_SAFE_INTEGER) - BigInt(MAX_L1_BYTES);
  if (l1TableOffset > limit || l1TableOffset % BigInt(image.geometry.clusterSize) !== 0n) {
    throw new ImageError('corrupt', 'Snapshot L1 table offset invalid', { path: image.file.filename });
  }
  const l1 = new Uint32Array(l1Size * 2);
  await image.file.read(Number(l1TableOffset), tableBytes(l1));
  return loadTable(l1);
}

/** Guest bytes that an L1 table of so many entries can map. */
export function reach(entries: number, geometry: Geometry): number {
  return entries * geometry.l2Span;
}
