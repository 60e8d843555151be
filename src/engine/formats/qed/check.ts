/**
 * The consistency check ("Each cluster is referenced once and only once ... Offsets must be within the image file size and
 * must be cluster_size aligned"). A repair takes invalid offsets out; leaks and doubly used clusters stay.
 */
import { errnoText, ImageError } from '../../error.js';
import type { CheckContext, CheckResult } from '../../node/driver.js';
import type { Storage } from '../../storage/storage.js';
import { type QedImage, wholeClusters } from './image.js';
import {
  ENTRY_BYTES,
  entryAt,
  Feature,
  loadPage,
  setEntry,
  storePage,
  UNALLOCATED,
  ZERO_CLUSTER,
} from './layout.js';

/** The cluster map is held by parts of this many bytes, and all parts have at most so many. */
const PART_BYTES = 4096;
const MAX_MAP_BYTES = 512 << 20;

/** Which clusters of the file are in use; memory follows what is marked, not the file's size. */
class ClusterMap {
  readonly #parts = new Map<number, Uint8Array>();
  count = 0;

  /** False where the cluster was marked before. */
  mark(cluster: number): boolean {
    const index = Math.floor(cluster / (8 * PART_BYTES));
    let part = this.#parts.get(index);
    if (part === undefined) {
      if (this.#parts.size * PART_BYTES >= MAX_MAP_BYTES) {
        throw new ImageError('limit', errnoText('ENOMEM'), { errno: 'ENOMEM' });
      }
      part = new Uint8Array(PART_BYTES);
      this.#parts.set(index, part);
    }
    const at = Math.floor(cluster / 8) % PART_BYTES;
    const bit = 1 << (cluster % 8);
    if ((part[at]! & bit) !== 0) return false;
    part[at]! |= bit;
    this.count++;
    return true;
  }
}

interface Pass {
  readonly image: QedImage;
  readonly file: Storage;
  readonly context: CheckContext;
  readonly fix: boolean;
  readonly used: ClusterMap;
  readonly result: CheckResult & {
    totalClusters: number;
    allocatedClusters: number;
    fragmentedClusters: number;
  };
}

/** Checks a closed or quiet image: nothing may be dirty in memory. Any repair takes out all invalid offsets. */
export async function checkQed(image: QedImage, context: CheckContext): Promise<CheckResult> {
  const { file, geometry, header } = image;
  const { clusterSize } = geometry;
  const result = {
    checkErrors: 0,
    corruptions: 0,
    leaks: 0,
    corruptionsFixed: 0,
    leaksFixed: 0,
    totalClusters: Math.ceil(image.size / clusterSize),
    allocatedClusters: 0,
    fragmentedClusters: 0,
  };
  const fix = context.repair.leaks || context.repair.errors;
  const pass: Pass = { image, file, context, fix, used: new ClusterMap(), result };
  markClusters(pass, image.l1At);
  await walkL1(pass);
  const regular = wholeClusters(file.size, clusterSize) / clusterSize - header.headerSize;
  result.leaks = Math.max(0, regular - pass.used.count);
  if (fix) {
    image.l1.clear();
    image.l2.clear();
    if (result.corruptions === 0) await markClean(image);
  }
  return result;
}

/** Takes the need-check bit off, after what was repaired is durable. */
async function markClean(image: QedImage): Promise<void> {
  if (!image.needsCheck) return;
  await image.file.flush();
  image.header.features &= ~Feature.needCheck;
  await image.writeHeader();
  await image.file.flush();
}

/** Marks the clusters of a table; false where any is used already. */
function markClusters({ image, used, result }: Pass, at: number): boolean {
  const { clusterSize, tableBytes } = image.geometry;
  let twice = 0;
  for (let i = 0; i < tableBytes / clusterSize; i++) {
    if (!used.mark(at / clusterSize + i)) twice++;
  }
  result.corruptions += twice;
  return twice === 0;
}

/** Visits the pages of a table that may have anything in them; writes back those whose visitor says so. */
async function visitPages(
  { image, file, context }: Pass,
  tableAt: number,
  visit: (words: Uint32Array, first: number) => boolean | Promise<boolean>,
): Promise<void> {
  const { tableBytes, pageBytes } = image.geometry;
  for (let offset = 0; offset < tableBytes; ) {
    context.signal?.throwIfAborted();
    const at = tableAt + offset;
    const run = await file.extent({ at, length: tableBytes - offset });
    if (!run.data && run.length >= pageBytes) {
      offset += run.length - (run.length % pageBytes);
      continue;
    }
    const bytes = new Uint8Array(pageBytes);
    await file.read(at, bytes);
    const words = loadPage(bytes);
    if (await visit(words, offset / ENTRY_BYTES)) await file.write(at, storePage(words, 0, pageBytes));
    offset += pageBytes;
  }
}

async function walkL1(pass: Pass): Promise<void> {
  const { image, result, fix, context } = pass;
  const { pageEntries, tableEntries } = image.geometry;
  await visitPages(pass, image.l1At, async (words, first) => {
    let changed = false;
    for (let entry = 0; entry < pageEntries; entry++) {
      const offset = entryAt(words, entry);
      if (offset === UNALLOCATED) continue;
      if (!image.validTable(offset)) {
        if (fix) {
          setEntry(words, entry, UNALLOCATED);
          changed = true;
          result.corruptionsFixed++;
        } else result.corruptions++;
        continue;
      }
      if (!markClusters(pass, offset)) continue;
      await walkL2(pass, offset);
      context.progress?.(first + entry, tableEntries);
    }
    return changed;
  });
}

async function walkL2(pass: Pass, tableAt: number): Promise<void> {
  const { image, result, fix, used } = pass;
  const { clusterSize, pageEntries } = image.geometry;
  let last = 0;
  await visitPages(pass, tableAt, (words) => {
    let changed = false;
    for (let entry = 0; entry < pageEntries; entry++) {
      const offset = entryAt(words, entry);
      if (offset === UNALLOCATED || offset === ZERO_CLUSTER) continue;
      result.allocatedClusters++;
      if (last !== 0 && last + clusterSize !== offset) result.fragmentedClusters++;
      last = offset;
      if (!image.validCluster(offset)) {
        if (fix) {
          setEntry(words, entry, UNALLOCATED);
          changed = true;
          result.corruptionsFixed++;
        } else result.corruptions++;
      } else if (!used.mark(offset / clusterSize)) result.corruptions++;
    }
    return changed;
  });
}
