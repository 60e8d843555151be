/**
 * Another width of the reference counts. The whole structure is built anew beside the present one, which counts the new
 * clusters as in use meanwhile; one write of the header, within a sector, switches over; then the old one is freed. A crash
 * leaks clusters at worst.
 */
import { ImageError } from '../../error.js';
import type { AmendContext } from '../../node/driver.js';
import { hex } from './image.js';
import {
  type Geometry,
  geometry,
  HeaderV2,
  HeaderV3,
  headerOffset,
  MAX_REFCOUNT_TABLE_BYTES,
  type RefcountAccess,
  refcountAccess,
  refcountTableOffset,
  setRefcountTable,
  storeTable,
  V2_HEADER_LENGTH,
} from './layout.js';
import type { WriteParts } from './node.js';
import type { HostRun } from './refcounts.js';

/** What is being built: places of blocks by their slot in the table. */
interface Structure {
  readonly geometry: Geometry;
  readonly access: RefcountAccess;
  readonly blocks: Map<number, number>;
  table: HostRun | undefined;
  /** Walks over the present counts that it took to find places for all. */
  walks: number;
  /** All clusters that were taken for it. */
  readonly taken: HostRun[];
}

/**
 * Rebuilds the refcounts with entries of `1 << order` bits.
 *
 * @throws ImageError `invalid` where a count does not fit; the image is as before then, and after a cancel.
 */
export async function changeRefcountOrder(
  parts: WriteParts,
  order: number,
  context: AmendContext,
): Promise<void> {
  const { image, refcounts } = parts;
  await image.writeback.run();
  const next: Structure = {
    geometry: geometry({ ...image.geometry, refcountOrder: order }),
    access: refcountAccess(order),
    blocks: new Map(),
    table: undefined,
    walks: 0,
    taken: [],
  };
  try {
    await place(parts, next, context);
    // Whatever happens from here on: the new clusters count as in use.
    await image.writeback.run();
    await write(parts, next, context);
  } catch (error) {
    for (const { at, count } of next.taken) refcounts.deferFree(at, count * image.geometry.clusterSize);
    await image.writeback.run().catch(() => {});
    throw error;
  }
  const old = oldStructure(parts);
  await switchOver(parts, next);
  for (const { at, length } of old) refcounts.deferFree(at, length);
  await image.writeback.run();
}

/** The present block in table slot `slot`, or undefined. */
async function blockAt({ image, refcounts }: WriteParts, slot: number): Promise<Uint8Array | undefined> {
  const at = refcountTableOffset(refcounts.table, slot);
  if (at === 0) return undefined;
  for (;;) {
    const found = refcounts.blocks.peek(at);
    if (found !== undefined) return found.table;
    // Asking for a count checks the block's place and brings it into memory.
    await refcounts.get(slot * image.geometry.refcountBlockEntries);
  }
}

/** Finds places for all blocks that are needed and for the table. They need counting themselves: until nothing is missing. */
async function place(parts: WriteParts, next: Structure, context: AmendContext): Promise<void> {
  const { refcounts } = parts;
  const { clusterSize } = next.geometry;
  const take = async (count: number): Promise<HostRun> => {
    const run = await refcounts.allocateRun(count);
    next.taken.push(run);
    return run;
  };
  for (let round = 0; ; round++) {
    next.walks = round + 1;
    const missing = await missingSlots(parts, next, context, round);
    if (missing.length > 0) {
      const { at } = await take(missing.length);
      missing.forEach((slot, index) => {
        next.blocks.set(slot, at + index * clusterSize);
      });
    }
    let slots = 0;
    for (const slot of next.blocks.keys()) slots = Math.max(slots, slot + 1);
    // Damaged counts may say that nothing is in use, not even what they are in themselves.
    const clusters = Math.max(1, Math.ceil((slots * 8) / clusterSize));
    if (clusters * clusterSize > MAX_REFCOUNT_TABLE_BYTES) {
      throw new ImageError('limit', 'Could not allocate the refcount table: File too large', {
        errno: 'EFBIG',
      });
    }
    if (next.table === undefined || next.table.count < clusters) {
      // One that turned out too short stays taken until the end, and is given back then.
      next.table = await take(clusters);
    } else if (missing.length === 0) return;
  }
}

/** Slots of the new table in whose range something is in use, and that have no block so far. */
async function missingSlots(
  parts: WriteParts,
  next: Structure,
  context: AmendContext,
  round: number,
): Promise<number[]> {
  const check = round === 0;
  // This one and the one that writes, at the least; usually one to find places and one to find them enough.
  const walks = Math.max(round + 2, 3);
  const { image, refcounts } = parts;
  const { refcountBlockEntries: entries, clusterSize, refcountOrder } = image.geometry;
  const { refcountBlockEntries: perBlock, maxRefcount, refcountBits } = next.geometry;
  const access = refcountAccess(refcountOrder);
  const missing = new Set<number>();
  const slots = refcounts.table.length / 2;
  for (let slot = 0; slot < slots; slot++) {
    context.progress(round * slots + slot, walks * slots);
    if (refcountTableOffset(refcounts.table, slot) === 0) continue;
    const block = (await blockAt(parts, slot))!;
    await context.pace();
    const first = slot * entries;
    for (let entry = 0; entry < entries; entry++) {
      const value = access.get(block, entry);
      if (value === 0) continue;
      const cluster = first + entry;
      if (check && value > maxRefcount) {
        throw new ImageError(
          'invalid',
          `Cannot decrease refcount entry width to ${refcountBits} bits: Cluster at offset ${hex(cluster * clusterSize)} has a refcount of ${value}`,
        );
      }
      const wanted = Math.floor(cluster / perBlock);
      if (!next.blocks.has(wanted)) missing.add(wanted);
      // The rest of a range that has its block is of no interest, where there is nothing to check.
      if (!check) entry = Math.min(entries, (wanted + 1) * perBlock - first) - 1;
    }
  }
  context.progress((round + 1) * slots, walks * slots);
  return [...missing].sort((a, b) => a - b);
}

/** Writes the new blocks and the table that names them, durably. */
async function write(parts: WriteParts, next: Structure, context: AmendContext): Promise<void> {
  const { image } = parts;
  const { refcountBlockEntries: entries, clusterSize, refcountOrder } = image.geometry;
  const { refcountBlockEntries: perBlock } = next.geometry;
  const from = refcountAccess(refcountOrder);
  const slots = parts.refcounts.table.length / 2;
  const table = new Uint32Array((next.table!.count * clusterSize) / 4);
  let done = 0;
  let told = 0;
  for (const [slot, at] of next.blocks) {
    await context.pace();
    const bytes = new Uint8Array(clusterSize);
    for (let entry = 0; entry < perBlock; ) {
      const cluster = slot * perBlock + entry;
      const source = Math.floor(cluster / entries);
      const first = cluster - source * entries;
      const count = Math.min(perBlock - entry, entries - first);
      const block = source < slots ? await blockAt(parts, source) : undefined;
      for (let i = 0; block !== undefined && i < count; i++) {
        const value = from.get(block, first + i);
        if (value !== 0) next.access.set(bytes, entry + i, value);
      }
      entry += count;
    }
    await image.file.write(at, bytes);
    setRefcountTable(table, slot, at);
    done++;
    for (const reach = (done / next.blocks.size) * slots; told < reach; ) {
      context.progress(next.walks * slots + ++told, (next.walks + 1) * slots);
    }
  }
  await image.file.write(next.table!.at, storeTable(table));
  await image.file.flush();
}

/** The clusters of the present structure. */
function oldStructure({ image, refcounts }: WriteParts): { at: number; length: number }[] {
  const { clusterSize } = image.geometry;
  const { header } = image;
  const old = [
    { at: Number(header.refcountTableOffset), length: header.refcountTableClusters * clusterSize },
  ];
  for (let slot = 0; slot * 2 < refcounts.table.length; slot++) {
    const at = refcountTableOffset(refcounts.table, slot);
    if (at !== 0) old.push({ at, length: clusterSize });
  }
  return old;
}

/** Place and length of the table and the width change in one write of bytes that lie in one sector. */
async function switchOver({ image, refcounts }: WriteParts, next: Structure): Promise<void> {
  const { file, header } = image;
  const { at, count } = next.table!;
  const start = headerOffset.refcountTableOffset;
  const orderAt = V2_HEADER_LENGTH + HeaderV3.offsetOf('refcountOrder');
  const bytes = new Uint8Array(orderAt + 4 - start);
  await file.read(start, bytes);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(at));
  view.setUint32(HeaderV2.offsetOf('refcountTableClusters') - start, count);
  view.setUint32(orderAt - start, next.geometry.refcountOrder);
  await file.write(start, bytes);
  await file.flush();
  image.header = {
    ...header,
    refcountTableOffset: BigInt(at),
    refcountTableClusters: count,
    refcountOrder: next.geometry.refcountOrder,
  };
  image.geometry = next.geometry;
  await refcounts.reload();
}
