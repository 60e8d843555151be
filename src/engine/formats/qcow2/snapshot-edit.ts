/**
 * Creating, applying and deleting internal snapshots. A snapshot is a copy of the L1 table: it shares the L2 tables and
 * clusters, whose refcounts go up by one for each L1 table that leads to them. The snapshot table is always written to a
 * new place, and the header switched to it by one write.
 *
 * Refcounts and the copied flags (which say that a refcount is exactly one) cannot change at the same instant. Flags are
 * cleared before counts go up, and set after they went down, so that at no time a shared cluster could be written in place;
 * and meanwhile the image is marked dirty, so that whoever opens it after a crash counts anew.
 */
import { ImageError } from '../../error.js';
import type { SnapshotEditor, SnapshotInfo } from '../../node/driver.js';
import { hex, type Image, type L2Table } from './image.js';
import {
  clusterKind,
  headerOffset,
  isCopied,
  Kind,
  l1Offset,
  MAX_L1_BYTES,
  offsetAt,
  packedLength,
  packedOffset,
  SnapshotExtra,
  setCopied,
  setL1,
  storeTable,
} from './layout.js';
import type { WriteParts } from './node.js';
import { Freed } from './runtime.js';
import { encodeSnapshots, readSnapshotL1, type Snapshot } from './snapshots.js';

/** The fields of the extra data that every entry of a version 3 image has: state size and disk size. */
const REQUIRED_EXTRA = 16;

/** The reference keeps a name in 256 bytes with a NUL. */
const MAX_NAME_BYTES = 255;

/** What an open node knows of its snapshots. */
export interface SnapshotList {
  get(): readonly Snapshot[];
  set(snapshots: readonly Snapshot[]): void;
  /** The guest's content is another one now. */
  contentReplaced(): void;
}

export function snapshotEditor(parts: WriteParts, list: SnapshotList): SnapshotEditor {
  const find = ({ id, name }: SnapshotInfo): Snapshot => {
    const found = list.get().find(({ info }) => info.id === id && info.name === name);
    if (found === undefined)
      throw new ImageError('not-found', 'No such file or directory', { errno: 'ENOENT' });
    return found;
  };
  return {
    create: (info) => create(parts, list, info),
    apply: (info) => apply(parts, list, find(info)),
    delete: (info) => remove(parts, list, find(info)),
  };
}

// ------------------------------------------------------------------------------------------- what an L1 table leads to

/** The L2 table at host offset `at`, brought into memory. */
async function tableAt({ image }: WriteParts, at: number, index: number): Promise<L2Table> {
  const { l2, geometry } = image;
  if (at % geometry.clusterSize !== 0 || !Number.isSafeInteger(at)) {
    throw image.corrupt(`L2 table offset ${hex(at)} unaligned (L1 index: ${hex(index)})`);
  }
  for (;;) {
    const found = l2.peek(at);
    if (found !== undefined) return found;
    await l2.load(at);
  }
}

/** Host bytes that the entries of an L2 table refer to, as pairs of offset and length; runs of clusters are merged. */
function references({ image }: WriteParts, { at: l2At, table: words }: L2Table): number[] {
  const g = image.geometry;
  const found: number[] = [];
  const { clusterSize, l2Words } = g;
  for (let word = 0; word < words.length; word += l2Words) {
    if ((words[word]! | words[word + 1]!) === 0) continue;
    const kind = clusterKind(words, word, g);
    if (kind === Kind.compressed) {
      const at = packedOffset(words, word, g);
      const first = at - (at % clusterSize);
      const end = Math.ceil((at + packedLength(words, word, g)) / clusterSize) * clusterSize;
      found.push(first, end - first);
    } else if (kind === Kind.normal || kind === Kind.zeroAlloc) {
      const at = alignedOffset(image, l2At, words, word);
      const last = found.length - 2;
      if (last >= 0 && found[last]! + found[last + 1]! === at) found[last + 1]! += clusterSize;
      else found.push(at, clusterSize);
    }
  }
  return found;
}

/** Host bytes that an L1 table leads to: what each L2 table refers to, then that table itself. */
async function* reached(parts: WriteParts, l1: Uint32Array): AsyncGenerator<readonly number[]> {
  const { geometry } = parts.image;
  for (let index = 0; index < l1.length / 2; index++) {
    const at = l1Offset(l1, index);
    if (at === 0) continue;
    const table = await tableAt(parts, at, index);
    yield [...references(parts, table), at, geometry.clusterSize];
  }
}

/** The host offset of an entry of the L2 table at `l2At`. */
function alignedOffset(image: Image, l2At: number, words: Uint32Array, word: number): number {
  const { clusterSize, l2Words } = image.geometry;
  const at = offsetAt(words, word);
  if (at % clusterSize === 0 && Number.isSafeInteger(at)) return at;
  const where = `(L2 offset: ${hex(l2At)}, L2 index: ${hex(word / l2Words)})`;
  throw image.corrupt(`Cluster allocation offset ${hex(at)} unaligned ${where}`);
}

/**
 * Throws where something that an L1 table leads to counts as free: neither one use more of it can be nor one less. Changes
 * nothing.
 */
async function checkCounted(parts: WriteParts, l1: Uint32Array): Promise<void> {
  const { refcounts, image } = parts;
  const { clusterSize } = image.geometry;
  for await (const runs of reached(parts, l1)) {
    for (let i = 0; i < runs.length; i += 2) {
      const end = (runs[i]! + runs[i + 1]!) / clusterSize;
      for (let cluster = runs[i]! / clusterSize; cluster < end; ) {
        const value = refcounts.count(cluster);
        if (value instanceof Promise) {
          await value;
          continue;
        }
        if (value === 0) {
          throw new ImageError('corrupt', 'Invalid argument', { errno: 'EINVAL', path: image.file.filename });
        }
        cluster++;
      }
    }
  }
}

/** One more use of all that an L1 table leads to. Where that fails, what was added is taken off again. */
async function raiseAll(parts: WriteParts, l1: Uint32Array): Promise<void> {
  const { refcounts, image } = parts;
  const { clusterSize } = image.geometry;
  let raised = 0;
  try {
    for await (const runs of reached(parts, l1)) {
      for (let i = 0; i < runs.length; i += 2) {
        await refcounts.raise(runs[i]! / clusterSize, runs[i + 1]! / clusterSize);
        raised++;
      }
      if (refcounts.crowded) await image.writeback.run();
    }
  } catch (error) {
    if (image.dead) throw error;
    for await (const runs of reached(parts, l1)) {
      for (let i = 0; i < runs.length && raised > 0; i += 2, raised--) {
        await refcounts.release(runs[i]! / clusterSize, runs[i + 1]! / clusterSize);
      }
      if (raised === 0) break;
    }
    throw error;
  }
}

/** One use less of all that an L1 table leads to, and of the table. Nothing on the disk leads there any more. */
async function freeAll(parts: WriteParts, l1: Uint32Array, at: number): Promise<void> {
  const { refcounts, image } = parts;
  const { clusterSize } = image.geometry;
  for await (const runs of reached(parts, l1)) {
    for (let i = 0; i < runs.length; i += 2) refcounts.deferFree(runs[i]!, runs[i + 1]!, Freed.snapshot);
    if (refcounts.crowded) await image.writeback.run();
  }
  const bytes = Math.ceil(l1.byteLength / clusterSize) * clusterSize;
  if (bytes > 0) refcounts.deferFree(at, bytes, Freed.snapshot);
  await image.writeback.run();
}

/** Clears the copied flags of an L2 table. */
function clearCopied({ image, tables }: WriteParts, table: L2Table): void {
  const { l2Words } = image.geometry;
  const words = table.table;
  for (let word = 0; word < words.length; word += l2Words) {
    if (!isCopied(words, word)) continue;
    setCopied(words, word, false);
    tables.changed(table, word / l2Words, 1);
  }
}

/** Clears the copied flags of everything that the guest reaches: it may be shared from now on. */
async function clearAllCopied(parts: WriteParts): Promise<void> {
  const { image, tables } = parts;
  for (let index = 0; index < image.l1.length / 2; index++) {
    const at = l1Offset(image.l1, index);
    if (at === 0) continue;
    clearCopied(parts, await tableAt(parts, at, index));
    tables.setL1Copied(index, false);
    await tables.due();
  }
  await image.writeback.run();
}

/** Sets the copied flags of what has one user (again). */
async function setAllCopied(parts: WriteParts): Promise<void> {
  const { image, tables, refcounts } = parts;
  const { geometry } = image;
  const { clusterSize, l2Words } = geometry;
  const countOf = async (pending: Promise<void>, cluster: number): Promise<number> => {
    for (let value: number | Promise<void> = pending; ; value = refcounts.count(cluster)) {
      if (!(value instanceof Promise)) return value;
      await value;
    }
  };
  for (let index = 0; index < image.l1.length / 2; index++) {
    const at = l1Offset(image.l1, index);
    if (at === 0) continue;
    const table = await tableAt(parts, at, index);
    const words = table.table;
    for (let word = 0; word < words.length; word += l2Words) {
      if ((words[word]! | words[word + 1]!) === 0) continue;
      const kind = clusterKind(words, word, geometry);
      if (kind !== Kind.normal && kind !== Kind.zeroAlloc) continue;
      const cluster = alignedOffset(image, at, words, word) / clusterSize;
      let count = refcounts.count(cluster);
      if (count instanceof Promise) count = await countOf(count, cluster);
      if ((count === 1) === isCopied(words, word)) continue;
      setCopied(words, word, count === 1);
      tables.changed(table, word / l2Words, 1);
    }
    tables.setL1Copied(index, (await refcounts.get(at / clusterSize)) === 1);
    await tables.due();
  }
  await image.writeback.run();
}

// --------------------------------------------------------------------------------------------------- the three changes

/** Writes the snapshot table to a new place and lets the header point there. What it refers to is on the disk. */
async function switchTable(
  { image, refcounts }: WriteParts,
  list: SnapshotList,
  snapshots: readonly Snapshot[],
): Promise<void> {
  const { header, file, geometry } = image;
  const { clusterSize } = geometry;
  const table = encodeSnapshots(snapshots);
  let at = 0;
  if (table.byteLength > 0) {
    at = (await refcounts.allocateRun(Math.ceil(table.byteLength / clusterSize))).at;
    await image.writeback.run();
    await file.write(at, table);
    await file.flush();
  }
  // The two fields are next to each other, in one sector: one write.
  const pointer = new Uint8Array(12);
  const view = new DataView(pointer.buffer);
  view.setUint32(0, snapshots.length);
  view.setBigUint64(4, BigInt(at));
  await file.write(headerOffset.snapshotCount, pointer);
  await file.flush();
  const old = { at: Number(header.snapshotsOffset), length: image.snapshotTableBytes };
  header.snapshotCount = snapshots.length;
  header.snapshotsOffset = BigInt(at);
  image.snapshotTableBytes = table.byteLength;
  list.set(snapshots);
  await image.overlaps.setSnapshots(snapshots);
  if (old.length > 0)
    refcounts.deferFree(old.at, Math.ceil(old.length / clusterSize) * clusterSize, Freed.snapshot);
}

/** Version 3 demands extra data of every entry that version 2 does not: the table is written anew where one has less. */
export async function completeTable(parts: WriteParts, list: SnapshotList): Promise<void> {
  const snapshots = list.get();
  if (snapshots.every(({ extraBytes }) => extraBytes >= REQUIRED_EXTRA)) return;
  const whole = snapshots.map((each) => ({
    ...each,
    extraBytes: SnapshotExtra.size + each.unknownExtra.byteLength,
  }));
  await switchTable(parts, list, whole);
  await parts.image.writeback.run();
}

/** A name as long as the reference keeps it. */
function cutName(name: string): string {
  const bytes = Buffer.from(name);
  return bytes.byteLength <= MAX_NAME_BYTES ? name : bytes.subarray(0, MAX_NAME_BYTES).toString();
}

async function create(
  parts: WriteParts,
  list: SnapshotList,
  given: Omit<SnapshotInfo, 'id' | 'diskSize'>,
): Promise<SnapshotInfo> {
  const { image, refcounts } = parts;
  const { geometry, file } = image;
  const snapshots = list.get();
  const ids = snapshots.map(({ info }) => Number.parseInt(info.id, 10)).filter(Number.isSafeInteger);
  const id = String(ids.reduce((most, each) => Math.max(most, each), 0) + 1);
  const info: SnapshotInfo = { ...given, name: cutName(given.name), id, diskSize: image.size };
  const l1Bytes = image.header.l1Size * 8;
  await checkCounted(parts, image.l1);

  // Where the rest fails, this place is a leak, as any allocation before a failure.
  const place =
    l1Bytes > 0 ? await refcounts.allocateRun(Math.ceil(l1Bytes / geometry.clusterSize)) : undefined;
  await image.writeback.run();
  await image.markDirty(true);
  await clearAllCopied(parts);
  if (place !== undefined) await file.write(place.at, storeTable(withoutFlags(image.l1)));
  try {
    await raiseAll(parts, image.l1);
  } catch (error) {
    if (image.dead) throw error;
    await setAllCopied(parts);
    await image.markDirty(false);
    throw error;
  }
  await image.writeback.run();
  const snapshot: Snapshot = {
    info,
    l1TableOffset: BigInt(place?.at ?? 0),
    l1Size: image.header.l1Size,
    extraBytes: SnapshotExtra.size,
    unknownExtra: new Uint8Array(0),
  };
  await switchTable(parts, list, [...snapshots, snapshot]);
  await image.markDirty(false);
  await image.writeback.run();
  return info;
}

/**
 * The guest gets a copy of the snapshot's L1 table in a new place, in one write of the header together with the size. No
 * cluster that the guest then has is its own alone, so that no copied flag need be set; the old ones are freed last.
 */
async function apply(parts: WriteParts, list: SnapshotList, snapshot: Snapshot): Promise<void> {
  const { image, refcounts, tables } = parts;
  const { geometry, file, header } = image;
  const saved = await readSnapshotL1(image, snapshot);
  await checkCounted(parts, image.l1);
  const size = snapshot.info.diskSize;
  const entries = Math.max(header.l1Size, snapshot.l1Size, Math.ceil(size / geometry.l2Span));
  if (entries * 8 > MAX_L1_BYTES) throw new ImageError('limit', 'File too large', { errno: 'EFBIG' });
  const l1 = new Uint32Array(entries * 2);
  l1.set(withoutFlags(saved));

  const place =
    entries > 0 ? await refcounts.allocateRun(Math.ceil(l1.byteLength / geometry.clusterSize)) : undefined;
  await raiseAll(parts, l1);
  await image.writeback.run();
  for (let index = 0; index < entries; index++) {
    const at = l1Offset(l1, index);
    // There should be none in what a snapshot has; other programs may have left some.
    if (at !== 0) clearCopied(parts, await tableAt(parts, at, index));
    await tables.due();
  }
  await image.writeback.run();
  if (place !== undefined) await file.write(place.at, storeTable(l1));
  await file.flush();
  const old = { l1: image.l1, at: Number(header.l1TableOffset) };
  const fields = new Uint8Array(headerOffset.l1TableOffset + 8 - headerOffset.size);
  const view = new DataView(fields.buffer);
  view.setBigUint64(0, BigInt(size));
  view.setUint32(8, header.cryptMethod);
  view.setUint32(12, entries);
  view.setBigUint64(16, BigInt(place?.at ?? 0));
  await file.write(headerOffset.size, fields);
  await file.flush();
  header.size = BigInt(size);
  header.l1Size = entries;
  header.l1TableOffset = BigInt(place?.at ?? 0);
  image.size = size;
  image.l1 = l1;
  tables.l1Replaced();
  list.contentReplaced();
  await freeAll(parts, old.l1, old.at);
}

async function remove(parts: WriteParts, list: SnapshotList, snapshot: Snapshot): Promise<void> {
  const { image } = parts;
  const l1 = await readSnapshotL1(image, snapshot);
  const freeing = 'Failed to free the cluster and L1 table: ';
  await saying(freeing, checkCounted(parts, l1));
  await image.writeback.run();
  await image.markDirty(true);
  const left = list.get().filter((each) => each !== snapshot);
  await saying('Failed to remove snapshot from snapshot list: ', switchTable(parts, list, left));
  await saying(freeing, freeAll(parts, l1, Number(snapshot.l1TableOffset)));
  await saying('Failed to update snapshot status in disk: ', setAllCopied(parts));
  await image.markDirty(false);
}

/** An L1 table with its offsets alone: nothing in it is the guest's own, and reserved bits do not spread. */
function withoutFlags(l1: Uint32Array): Uint32Array {
  const copy = new Uint32Array(l1.length);
  for (let index = 0; index < l1.length / 2; index++) setL1(copy, index, l1Offset(l1, index), false);
  return copy;
}

/** An error of `work` says what failed. */
async function saying(what: string, work: Promise<void>): Promise<void> {
  try {
    await work;
  } catch (error) {
    throw error instanceof ImageError ? error.prefixed(what) : error;
  }
}
