/** Letting all guest data of an image go, so that it reads as its backing file. */
import {
  ExtensionType,
  type Geometry,
  headerOffset,
  l1Offset,
  refcountAccess,
  refcountTableOffset,
  setRefcountTable,
  storeTable,
} from './layout.js';
import type { WriteParts } from './node.js';

/** Clusters [first, end). */
interface Clusters {
  readonly first: number;
  readonly end: number;
}

/** Extensions that refer to no clusters of the image. */
const SELF_CONTAINED: readonly number[] = [ExtensionType.backingFormat, ExtensionType.featureNames];

/**
 * The fast way, for images in which nothing but the guest's data has clusters: the L1 table is cleared, and then all clusters
 * but those of the header and its tables are free, which takes a few refcount blocks to say. False, and nothing done, where
 * that is not so. What is in memory must be flushed before, and read again after.
 */
export async function emptyWhole(parts: WriteParts): Promise<boolean> {
  const { image, refcounts } = parts;
  const { file, header, geometry } = image;
  const { clusterSize } = geometry;
  image.checkAlive();
  const simple = holdsGuestOnly(parts);
  const l1At = Number(header.l1TableOffset);
  const tableAt = Number(header.refcountTableOffset);
  const live: Clusters[] = [
    run(0, 1, geometry),
    run(l1At, header.l1Size * 8, geometry),
    run(tableAt, header.refcountTableClusters * clusterSize, geometry),
  ].filter(({ first, end }) => first < end);
  const kept = simple ? blocksFor(refcounts.table, live, geometry, file.size) : undefined;
  if (kept === undefined) return false;

  file.event?.('l1_update', l1At);
  // Nothing refers to the guest's clusters any more: from here on a crash leaks them.
  await file.write(l1At, new Uint8Array(header.l1Size * 8));
  await file.flush();
  const table = new Uint32Array(refcounts.table.length);
  for (const [slot, at] of kept) setRefcountTable(table, slot, at);
  await file.write(tableAt, storeTable(table));
  await file.flush();
  const access = refcountAccess(geometry.refcountOrder);
  const entries = geometry.refcountBlockEntries;
  for (const [slot, at] of kept) {
    const block = new Uint8Array(clusterSize);
    for (const { first, end } of live) {
      const stop = Math.min(end, (slot + 1) * entries);
      for (let cluster = Math.max(first, slot * entries); cluster < stop; cluster++) {
        access.set(block, cluster % entries, 1);
      }
    }
    await file.write(at, block);
  }
  await file.flush();
  await giveBack(parts, live);
  return true;
}

/** True where nothing but the guest's data, and what maps and counts it, has clusters. */
function holdsGuestOnly({ image }: WriteParts): boolean {
  const { dataFile, header } = image;
  return (
    dataFile === undefined &&
    header.cryptMethod === 0 &&
    header.snapshotCount === 0 &&
    header.extensions.every(({ type }) => SELF_CONTAINED.includes(type))
  );
}

/**
 * Makes a version 3 image as small as one that was just created: header, refcount table, one refcount block, L1 table. While
 * the counts are not to be believed the image is marked dirty, and whoever opens it for writing counts anew. False, and
 * nothing done, where other things than the guest's data have clusters, or one block would not do. What is in memory must
 * be flushed before, and read again after.
 */
export async function emptyCompact(parts: WriteParts): Promise<boolean> {
  const { image } = parts;
  const { file, header, geometry } = image;
  const { clusterSize, refcountBlockEntries } = geometry;
  image.checkAlive();
  const l1Clusters = Math.ceil((header.l1Size * 8) / clusterSize);
  const clusters = 3 + l1Clusters;
  if (header.version < 3 || !holdsGuestOnly(parts) || clusters > refcountBlockEntries) return false;
  const [tableAt, blockAt, l1At] = [1, 2, 3].map((cluster) => cluster * clusterSize) as [
    number,
    number,
    number,
  ];

  await image.markDirty(true);
  file.event?.('l1_update', Number(header.l1TableOffset));
  if (l1Clusters > 0) {
    await file.zero({ at: Number(header.l1TableOffset), length: l1Clusters * clusterSize });
    await file.flush();
  }
  // Nothing refers to the guest's clusters any more.
  file.event?.('empty_image_prepare');
  await file.zero({ at: tableAt, length: (2 + l1Clusters) * clusterSize });
  await file.flush();
  file.event?.('reftable_update');
  // Places and lengths of both tables are next to each other, in one sector: one write.
  const pointers = new Uint8Array(headerOffset.refcountTableClusters + 4 - headerOffset.l1TableOffset);
  const view = new DataView(pointers.buffer);
  view.setBigUint64(0, BigInt(l1Clusters > 0 ? l1At : 0));
  view.setBigUint64(headerOffset.refcountTableOffset - headerOffset.l1TableOffset, BigInt(tableAt));
  view.setUint32(headerOffset.refcountTableClusters - headerOffset.l1TableOffset, 1);
  await file.write(headerOffset.l1TableOffset, pointers);
  await file.flush();
  file.event?.('refblock_alloc');
  const access = refcountAccess(geometry.refcountOrder);
  const block = new Uint8Array(clusterSize);
  for (let cluster = 0; cluster < clusters; cluster++) access.set(block, cluster, 1);
  const table = new Uint32Array(clusterSize / 4);
  setRefcountTable(table, 0, blockAt);
  await file.write(tableAt, storeTable(table));
  await file.write(blockAt, block);
  await file.flush();
  await file.truncate(clusters * clusterSize).catch(() => {});
  await image.markDirty(false);
  return true;
}

function run(at: number, length: number, { clusterSize }: Geometry): Clusters {
  return { first: Math.floor(at / clusterSize), end: Math.ceil((at + length) / clusterSize) };
}

/**
 * The refcount blocks (by table slot, with their host offsets) that count the `live` clusters and each other; they are added
 * to `live`. Undefined where one is missing or cannot be where the table says.
 */
function blocksFor(
  table: Uint32Array,
  live: Clusters[],
  geometry: Geometry,
  fileSize: number,
): Map<number, number> | undefined {
  const { clusterSize, refcountBlockEntries } = geometry;
  const kept = new Map<number, number>();
  for (let next = 0; next < live.length; next++) {
    const { first, end } = live[next]!;
    const last = Math.floor((end - 1) / refcountBlockEntries);
    for (let slot = Math.floor(first / refcountBlockEntries); slot <= last; slot++) {
      if (kept.has(slot)) continue;
      const at = slot * 2 < table.length ? refcountTableOffset(table, slot) : 0;
      if (at === 0 || at % clusterSize !== 0 || at + clusterSize > fileSize) return undefined;
      const block = run(at, clusterSize, geometry);
      // Two uses of one cluster: a damaged image is left to the careful way.
      if (live.some((other) => other.first < block.end && block.first < other.end)) return undefined;
      kept.set(slot, at);
      live.push(block);
    }
  }
  return kept;
}

/** The host space of all but the live clusters: hints, which a storage need not take. */
async function giveBack({ image }: WriteParts, live: readonly Clusters[]): Promise<void> {
  const { file, geometry } = image;
  const { clusterSize } = geometry;
  let end = 0;
  for (const { first, end: next } of [...live].sort((a, b) => a.first - b.first)) {
    if (first > end) {
      await file.discard({ at: end * clusterSize, length: (first - end) * clusterSize }).catch(() => {});
    }
    end = next;
  }
  const used = end * clusterSize;
  if (file.size > used) {
    await file
      .truncate(used)
      .catch(() => file.discard({ at: used, length: file.size - used }))
      .catch(() => {});
  }
  await file.flush();
}

/** The careful way: entry by entry, with snapshots and bitmaps left as they are. */
export async function emptyByEntries(parts: WriteParts): Promise<void> {
  const { image, tables, writer } = parts;
  const { l1, geometry, dataFile } = image;
  for (let index = 0; index < l1.length / 2; index++) {
    if (l1Offset(l1, index) === 0) continue;
    for (;;) {
      image.checkAlive();
      const table = tables.due() ?? tables.existing(index);
      if (table instanceof Promise) {
        await table;
        continue;
      }
      // The table goes as a whole, and one use of each cluster in it: nothing in the table itself changes.
      const words = table === undefined ? 0 : table.table.length;
      for (let word = 0; word < words; word += geometry.l2Words) writer.freeOld(table!.table, word);
      tables.unlink(index);
      break;
    }
  }
  await image.writeback.run();
  if (dataFile !== undefined) await dataFile.discard({ at: 0, length: image.size }).catch(() => {});
}
