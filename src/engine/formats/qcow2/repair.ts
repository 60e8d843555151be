/**
 * Repairs that write new structures. Each is written beside the old one and made durable before the header names it, so
 * that a crash leaves the image as it was or as it becomes, with leaks at worst.
 */
import { ImageError } from '../../error.js';
import type { ReferenceCounts } from './check-counts.js';
import { CHUNK } from './check-counts.js';
import { breathe, type CheckState, checkFailed } from './check-image.js';
import type { DiskRefcounts } from './check-refcounts.js';
import { encodeSnapshotPointer, encodeSnapshotTable, type SnapshotTable } from './check-snapshots.js';
import type { Dangling } from './check-tables.js';
import {
  headerOffset,
  Incompatible,
  MAX_REFCOUNT_TABLE_BYTES,
  refcountAccess,
  setRefcountTable,
  storeTable,
} from './layout.js';

const NO_SNAPSHOTS = 'ERROR failed to update snapshot table: Input/output error';

/** Writes in flight at once. */
const BATCH = 8;

/**
 * Writes a refcount structure that records `counts`, in clusters that nothing refers to, and makes the header name it.
 * The old structure is counted still: its clusters are leaks of the new one, for the caller to give back.
 *
 * The clusters behind the end of the file that are referred to (`dangling`) are left alone, and counted
 * where the file grows over them, lest the guest should find the new structure in its disk.
 */
export async function rebuildRefcounts(
  state: CheckState,
  counts: ReferenceCounts,
  { clusters: dangling, straddling }: Dangling,
): Promise<void> {
  const { file, header, guard } = state;
  const { clusterSize, refcountBlockEntries } = header.geometry;
  /** Of the file as it is. */
  const end = counts.clusters;
  const pending = new Map([...dangling].filter(([cluster]) => cluster >= counts.clusters));
  const place = (from: number, length: number): number => {
    let first = counts.freeRun(from, length);
    for (let at = first; at < first + length; at++) {
      if (!dangling.has(at)) continue;
      first = counts.freeRun(at + 1, length);
      at = first - 1;
    }
    return first;
  };
  const blocks = new Map<number, number>();
  // The new structure takes clusters itself, which may need blocks that were not needed before: until nothing is added.
  const cover = (): void => {
    for (let first = 0; first < counts.clusters; first += Math.min(refcountBlockEntries, CHUNK)) {
      const index = Math.floor(first / refcountBlockEntries);
      if (blocks.has(index) || !isUsed(counts, first, Math.min(refcountBlockEntries, CHUNK))) continue;
      // a block lies among the clusters that it counts, where there is room
      const free = place(index * refcountBlockEntries, 1);
      blocks.set(index, free);
      counts.add(free);
    }
  };
  let table = { first: -1, clusters: 0 };
  for (;;) {
    const covered = blocks.size;
    for (const [cluster, times] of pending) {
      if (cluster >= counts.clusters) continue;
      for (let time = 0; time < times; time++) counts.add(cluster);
      pending.delete(cluster);
    }
    for (const region of straddling.splice(0)) {
      if (region.last >= counts.clusters) straddling.push(region);
      else for (let at = region.first; at <= region.last && at < end; at++) counts.add(at);
    }
    cover();
    if (blocks.size > covered) continue;
    let last = 0;
    for (const index of blocks.keys()) last = Math.max(last, index);
    const needed = Math.ceil(((last + 1) * 8) / clusterSize);
    if (table.clusters >= needed) break;
    if (needed * clusterSize > MAX_REFCOUNT_TABLE_BYTES) {
      throw checkFailed('limit', 'EFBIG');
    }
    for (let at = 0; at < table.clusters; at++) counts.release(table.first + at);
    table = { first: place(0, needed), clusters: needed };
    for (let at = 0; at < needed; at++) counts.add(table.first + at);
  }

  // All places are looked at before anything is written. What the old structure takes is counted, or given up.
  const old = ['refcount table', 'refcount block'] as const;
  for (const cluster of blocks.values()) {
    guard.check(cluster * clusterSize, clusterSize, old, notWritten('refblock'));
  }
  guard.check(table.first * clusterSize, table.clusters * clusterSize, old, notWritten('reftable'));
  guard.checkHeader(old, notWritten('refblock'));
  guard.written = true;

  const words = new Uint32Array((table.clusters * clusterSize) / 4);
  const indices = [...blocks.keys()].sort((a, b) => a - b);
  for (let from = 0; from < indices.length; from += BATCH) {
    await breathe(state.context.signal);
    await Promise.all(
      indices.slice(from, from + BATCH).map((index) => {
        const at = blocks.get(index)! * clusterSize;
        setRefcountTable(words, index, at);
        return file.write(at, encodeBlock(state, counts, index));
      }),
    );
  }
  await file.write(table.first * clusterSize, storeTable(words));
  await file.flush();
  // Both fields of the header are in one sector and next to each other: one write, whole or not at all.
  const pointer = new Uint8Array(12);
  const view = new DataView(pointer.buffer);
  view.setBigUint64(0, BigInt(table.first * clusterSize));
  view.setUint32(8, table.clusters);
  await file.write(headerOffset.refcountTableOffset, pointer);
  await file.flush();
}

function notWritten(what: string): string {
  return `qemu-img: ERROR writing ${what}: Input/output error`;
}

function isUsed(counts: ReferenceCounts, first: number, length: number): boolean {
  for (let at = first; at < first + length; at += CHUNK) {
    const cells = counts.cells(at, Math.min(CHUNK, first + length - at));
    if (cells?.some((cell) => cell !== 0) === true) return true;
  }
  return false;
}

function encodeBlock(state: CheckState, counts: ReferenceCounts, index: number): Uint8Array {
  const { clusterSize, refcountOrder, refcountBlockEntries } = state.header.geometry;
  const { set } = refcountAccess(refcountOrder);
  const block = new Uint8Array(clusterSize);
  const first = index * refcountBlockEntries;
  const length = Math.min(refcountBlockEntries, counts.clusters - first);
  for (let entry = 0; entry < length; entry++) {
    const count = counts.get(first + entry);
    if (count !== 0) set(block, entry, count);
  }
  return block;
}

/** Writes the snapshot table anew, in free clusters, and gives the old one back. */
export async function rewriteSnapshotTable(
  state: CheckState,
  table: SnapshotTable,
  counts: ReferenceCounts,
  disk: DiskRefcounts,
): Promise<void> {
  const { file, header, guard } = state;
  const { clusterSize } = header.geometry;
  if (table.onlyShorter) {
    // As the reference does; and what was given up counts no more, for the counts were corrected without it.
    guard.checkHeader([], NO_SNAPSHOTS);
    guard.written = true;
    const pointer = encodeSnapshotPointer(table.snapshots.length, table.at);
    await file.write(pointer.at, pointer.bytes);
    await file.flush();
    return;
  }
  const bytes = encodeSnapshotTable(state, table);
  const needed = Math.ceil(bytes.length / clusterSize);
  let first = 0;
  if (needed > 0) {
    first = freeOnDisk(counts, disk, needed);
    guard.check(first * clusterSize, bytes.length, [], NO_SNAPSHOTS);
    guard.checkHeader([], NO_SNAPSHOTS);
    guard.written = true;
    await setRefcounts(disk, first, needed, () => 1);
    await file.write(first * clusterSize, bytes);
    await file.flush();
  }
  const pointer = encodeSnapshotPointer(table.snapshots.length, first * clusterSize);
  await file.write(pointer.at, pointer.bytes);
  await file.flush();
  if (table.length === 0 || table.at % clusterSize !== 0) return;
  const old = Math.floor(table.at / clusterSize);
  const length = Math.min(Math.ceil(table.length / clusterSize), Math.max(0, counts.clusters - old));
  await setRefcounts(disk, old, length, (cluster) => Math.max(0, counts.get(cluster) - 1));
}

/** A run of clusters that nothing refers to and for which there are refcount blocks. */
function freeOnDisk(counts: ReferenceCounts, disk: DiskRefcounts, needed: number): number {
  const entries = 2 ** disk.blockBits;
  let from = 0;
  for (;;) {
    const first = counts.freeRun(from, needed);
    const last = Math.floor((first + needed - 1) / entries);
    if (last >= disk.entries) break;
    let block = last;
    while (block * entries + entries > first && disk.cells[block] !== undefined) block -= 1;
    if (block * entries + entries <= first) return first;
    from = (block + 1) * entries;
  }
  throw new ImageError('no-space', 'Check failed: No space left on device', { errno: 'ENOSPC' });
}

async function setRefcounts(
  disk: DiskRefcounts,
  first: number,
  length: number,
  value: (cluster: number) => number,
): Promise<void> {
  const blocks = new Map<number, [number, number][]>();
  for (let cluster = first; cluster < first + length; cluster++) {
    const index = Math.floor(cluster / 2 ** disk.blockBits);
    if (disk.cells[index] === undefined) continue;
    const changes = blocks.get(index) ?? [];
    changes.push([cluster % 2 ** disk.blockBits, value(cluster)]);
    blocks.set(index, changes);
  }
  for (const [index, changes] of blocks) await disk.correct(index, changes);
}

/** Clears the dirty and corrupt bits: the image is sound, and all of it is on the disk. */
export function clearMarks(state: CheckState): Promise<void> {
  return writeIncompatible(state, state.header.incompatible & ~(Incompatible.dirty | Incompatible.corrupt));
}

/** Sets the corrupt bit, which keeps others from writing until a repair has succeeded. */
export function markCorrupt(state: CheckState): Promise<void> {
  return writeIncompatible(state, state.header.incompatible | Incompatible.corrupt);
}

async function writeIncompatible(state: CheckState, bits: bigint): Promise<void> {
  if (state.header.version < 3) return;
  // a header that is a table, too, would become another table
  if (state.guard.inHeader() !== undefined) return;
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, bits);
  await state.file.write(headerOffset.incompatible, bytes);
  await state.file.flush();
}
