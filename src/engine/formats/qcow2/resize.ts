/** Changing the guest size. */
import { ImageError } from '../../error.js';
import type { Preallocation } from '../../storage/storage.js';
import {
  clusterKind,
  headerOffset,
  isCopied,
  Kind,
  l1Offset,
  MAX_L1_BYTES,
  offsetAt,
  storeTable,
} from './layout.js';
import type { WriteParts } from './node.js';
import { preallocate } from './preallocate.js';

const SECTOR = 512;

export interface GrowOptions {
  readonly preallocation: Preallocation;
  /** What is added hides what a longer backing file has there. */
  readonly zeroNew?: boolean;
}

/**
 * Grows or shrinks the image. What is added is not allocated: where a backing file is longer than the image was, the
 * caller zeroes the new range. Throws `unsupported` with snapshots in version 2 images. `has.bitmaps` prepares these.
 */
export async function resize(
  parts: WriteParts,
  size: number,
  options: GrowOptions,
  has: { readonly snapshots: boolean; readonly bitmaps: () => Promise<void> },
): Promise<void> {
  const { image } = parts;
  if (size % SECTOR !== 0) {
    throw new ImageError('invalid', `The new size must be a multiple of ${SECTOR}`);
  }
  if (has.snapshots && image.header.version < 3) {
    throw new ImageError('unsupported', "Can't resize a v2 image which has snapshots");
  }
  if (size < image.size) {
    if (options.preallocation !== 'off') {
      throw new ImageError('unsupported', "Preallocation can't be used for shrinking an image");
    }
    await has.bitmaps();
    await shrink(parts, size);
  } else if (size > image.size) {
    await has.bitmaps();
    await grow(parts, size, options);
  }
}

async function writeSize(parts: WriteParts, size: number): Promise<void> {
  const { image } = parts;
  await image.writeField64('size', BigInt(size));
  image.header.size = BigInt(size);
  image.size = size;
  await image.file.flush();
}

/**
 * The last cluster may reach over the old end of the image, with bytes of a time when the image was longer. They must not
 * come back. (Of a compressed or shared cluster they do, as in the reference: only the image's own bytes of old.)
 */
async function zeroTail(parts: WriteParts): Promise<void> {
  const { image, tables } = parts;
  const { clusterSize, subclusterSize, l2Span, l2Entries, l2Words } = image.geometry;
  const inside = image.size % clusterSize;
  if (inside === 0) return;
  const index = Math.floor(image.size / l2Span);
  let table = tables.existing(index);
  while (table instanceof Promise) {
    await table;
    table = tables.existing(index);
  }
  if (table === undefined) return;
  const word = (Math.floor(image.size / clusterSize) % l2Entries) * l2Words;
  if (clusterKind(table.table, word, image.geometry) !== Kind.normal || !isCopied(table.table, word)) return;
  const at = offsetAt(table.table, word);
  if (at % clusterSize !== 0) return;
  // Behind the subcluster the file need not grow: past its end there are zeros.
  const there = Math.min(at + clusterSize, image.data.size);
  const end = Math.max(there, at + Math.ceil(inside / subclusterSize) * subclusterSize);
  if (end > at + inside) await image.data.zero({ at: at + inside, length: end - at - inside });
}

async function grow(parts: WriteParts, size: number, options: GrowOptions): Promise<void> {
  const { image, zeroer } = parts;
  const { preallocation, zeroNew = false } = options;
  const { clusterSize, subclusterSize } = image.geometry;
  const before = image.size;
  await zeroTail(parts);
  const entries = Math.ceil(size / image.geometry.l2Span);
  if (entries > image.l1.length / 2) await growL1(parts, entries);
  // With preallocation it grows with that.
  const { dataFile } = image;
  if (preallocation === 'off' && dataFile !== undefined && dataFile.size < size)
    await dataFile.truncate(size);
  // Preallocated before the size says so, and durable with it: the tables reach further than the image for a moment.
  if (preallocation !== 'off') {
    // The cluster that the old end is in may be the backing file's.
    const from = image.header.backing === undefined ? before : Math.ceil(before / clusterSize) * clusterSize;
    await preallocate(parts, from, size, preallocation);
    await image.writeback.run();
  }
  const zeroFrom = Math.ceil(before / subclusterSize) * subclusterSize;
  if (zeroNew && zeroFrom < size) {
    // Version 2 has no zero flag.
    if (!(await zeroer.zero({ at: zeroFrom, length: size - zeroFrom }, false))) {
      throw new ImageError('unsupported', 'Failed to zero out new clusters: Operation not supported', {
        errno: 'ENOTSUP',
      });
    }
    await image.writeback.run();
  }
  await writeSize(parts, size);
}

/** A longer L1 table in a new place. */
async function growL1(parts: WriteParts, entries: number): Promise<void> {
  const { image, refcounts, tables } = parts;
  const { clusterSize } = image.geometry;
  if (entries * 8 > MAX_L1_BYTES || entries * image.geometry.l2Span > Number.MAX_SAFE_INTEGER) {
    throw new ImageError('limit', 'Failed to grow the L1 table: File too large', { errno: 'EFBIG' });
  }
  const place = await refcounts.allocateRun(Math.ceil((entries * 8) / clusterSize));
  // Its clusters are counted, and the present table is what the file has, before the header changes.
  await image.writeback.run();
  const l1 = new Uint32Array(entries * 2);
  l1.set(image.l1);
  await image.file.write(place.at, storeTable(l1));
  await image.file.flush();
  const pointer = new Uint8Array(12);
  const view = new DataView(pointer.buffer);
  view.setUint32(0, entries);
  view.setBigUint64(4, BigInt(place.at));
  await image.file.write(headerOffset.l1Size, pointer);
  await image.file.flush();
  const { header } = image;
  const oldAt = Number(header.l1TableOffset);
  const oldBytes = header.l1Size * 8;
  header.l1TableOffset = BigInt(place.at);
  header.l1Size = entries;
  image.l1 = l1;
  tables.l1Replaced();
  if (oldBytes > 0) refcounts.deferFree(oldAt, Math.ceil(oldBytes / clusterSize) * clusterSize);
}

async function shrink(parts: WriteParts, size: number): Promise<void> {
  const { image, tables, zeroer } = parts;
  const { clusterSize, l2Span } = image.geometry;
  const before = image.size;
  await image.writeback.run();
  // The size first: a crash after it leaves clusters beyond the end, which harm nobody.
  await writeSize(parts, size);
  const from = Math.ceil(size / clusterSize) * clusterSize;
  if (from < before) await zeroer.discard({ at: from, length: before - from }, 'full');
  for (let index = Math.ceil(size / l2Span); index < image.l1.length / 2; index++) {
    if (l1Offset(image.l1, index) === 0) continue;
    await image.writeback.running;
    tables.unlink(index);
  }
  await image.writeback.run();
  await cutFile(parts);
  if (image.dataFile !== undefined) await image.dataFile.truncate(size);
}

/** Takes the free clusters at the end of the file off, once the counts on disk say that they are free. */
async function cutFile({ image, refcounts }: WriteParts): Promise<void> {
  const { file, geometry } = image;
  const end = (await refcounts.lastUsed(Math.ceil(file.size / geometry.clusterSize))) + 1;
  if (end * geometry.clusterSize >= file.size) return;
  await file.flush();
  await file.truncate(end * geometry.clusterSize);
}
