/** Writing guest clusters: where new ones go, and how they are linked after they were written. */
import type { WriteTarget } from '../../node/driver.js';
import type { MaybePromise, Range } from '../../storage/storage.js';
import { later } from '../later.js';
import type { Page, QedImage } from './image.js';
import { ENTRY_BYTES, entryAt, setEntry, UNALLOCATED, ZERO_CLUSTER } from './layout.js';

/** One target covers at most this many guest bytes. */
const MAX_TARGET = 8 << 20;

/** A page of an L2 table, and where in it the entry of a guest cluster is. */
interface Place {
  readonly page: Page;
  readonly entry: number;
}

/** Where the guest cluster's L2 table is to be made. */
interface Missing {
  readonly missing: number;
}

function isData(offset: number): boolean {
  return offset !== UNALLOCATED && offset !== ZERO_CLUSTER;
}

export class Writer {
  readonly #image: QedImage;
  /** L2 tables that are being made, by L1 index. */
  readonly #making = new Map<number, Promise<void>>();

  constructor(image: QedImage) {
    this.#image = image;
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    const found = this.#attempt(range);
    return found instanceof Promise ? later(found, () => this.#attempt(range)) : found;
  }

  /** As `#find`, with a table that is made where there is none. */
  #place(cluster: number): Place | Promise<void> {
    const found = this.#find(cluster);
    return 'missing' in found ? this.#makeTable(found.missing) : found;
  }

  /** The entry of a guest cluster (by index), to be changed in the same turn; a promise means to ask again. */
  #find(cluster: number): Place | Missing | Promise<void> {
    const image = this.#image;
    const { tableEntries, pageBytes, pageEntries } = image.geometry;
    const due = image.due();
    if (due !== undefined) return due;
    const index = Math.floor(cluster / tableEntries);
    const directory = image.l1.get(image.l1At + Math.floor(index / pageEntries) * pageBytes);
    if (directory instanceof Promise) return directory;
    const tableAt = entryAt(directory.table, index % pageEntries);
    if (tableAt === UNALLOCATED) return { missing: index };
    if (!image.validTable(tableAt)) throw image.damaged(image.l1At + index * ENTRY_BYTES);
    const within = cluster % tableEntries;
    const page = image.l2.get(tableAt + Math.floor(within / pageEntries) * pageBytes);
    if (page instanceof Promise) return page;
    return { page, entry: within % pageEntries };
  }

  /** A new L2 table, zeros in the file, and its entry in the L1 table. */
  #makeTable(index: number): Promise<void> {
    let making = this.#making.get(index);
    if (making === undefined) {
      making = this.#allocateTable(index).finally(() => this.#making.delete(index));
      this.#making.set(index, making);
    }
    return making;
  }

  async #allocateTable(index: number): Promise<void> {
    const image = this.#image;
    const { clusterSize, tableBytes, pageBytes, pageEntries } = image.geometry;
    const count = tableBytes / clusterSize;
    const at = image.allocate(count);
    try {
      await image.file.zero({ at, length: tableBytes }, { unmap: true });
    } catch (error) {
      image.giveBack(at, count);
      throw error;
    }
    for (;;) {
      const page =
        image.writeback.running ?? image.l1.get(image.l1At + Math.floor(index / pageEntries) * pageBytes);
      if (page instanceof Promise) {
        await page;
        continue;
      }
      const entry = index % pageEntries;
      setEntry(page.table, entry, at);
      image.l1.markDirty(page, entry * ENTRY_BYTES, (entry + 1) * ENTRY_BYTES);
      return;
    }
  }

  #attempt({ at, length }: Range): WriteTarget | Promise<void> {
    const image = this.#image;
    const { clusterSize, pageEntries } = image.geometry;
    const first = Math.floor(at / clusterSize);
    const wanted = Math.ceil((at + Math.min(length, MAX_TARGET)) / clusterSize) - first;
    const place = this.#find(first);
    if (place instanceof Promise) return place;
    const skip = at - first * clusterSize;
    const most = Math.min(wanted, pageEntries - (first % pageEntries));
    // A new table is made when the data is linked, behind it in the file, where the reference has it.
    if ('missing' in place) return this.#fresh(first, most, skip, length);
    const { page, entry } = place;
    const words = page.table;
    const start = entryAt(words, entry);
    let count = 1;
    if (isData(start)) {
      while (count < most && entryAt(words, entry + count) === start + count * clusterSize) count++;
      const last = start + (count - 1) * clusterSize;
      if (!image.validCluster(start) || !image.validCluster(last)) {
        throw image.damaged(page.at + entry * ENTRY_BYTES);
      }
      const covered = Math.min(length, count * clusterSize - skip);
      return { storage: image.file, at: start + skip, length: covered, fillBefore: 0, fillAfter: 0 };
    }
    while (count < most && !isData(entryAt(words, entry + count))) count++;
    return this.#fresh(first, count, skip, length);
  }

  /** New clusters for the guest's `first` and those after it; the range begins `skip` bytes into the first. */
  #fresh(first: number, count: number, skip: number, length: number): WriteTarget {
    const image = this.#image;
    const { clusterSize } = image.geometry;
    const covered = Math.min(length, count * clusterSize - skip);
    const host = image.allocate(count);
    return {
      storage: image.file,
      at: host + skip,
      length: covered,
      fillBefore: skip,
      fillAfter: count * clusterSize - skip - covered,
      commit: () => this.#link(first, count, host),
      abort: () => image.giveBack(host, count),
    };
  }

  /** The clusters are in one page. */
  #link(first: number, count: number, host: number): MaybePromise<void> {
    const place = this.#place(first);
    if (place instanceof Promise) return place.then(() => this.#link(first, count, host));
    const { page, entry } = place;
    const { clusterSize } = this.#image.geometry;
    for (let i = 0; i < count; i++) setEntry(page.table, entry + i, host + i * clusterSize);
    this.#image.l2.markDirty(page, entry * ENTRY_BYTES, (entry + count) * ENTRY_BYTES);
  }

  /** Whole clusters: those without data become zero clusters, the others keep their place and are overwritten. */
  async zero({ at, length }: Range, options: { readonly unmap: boolean }): Promise<void> {
    const image = this.#image;
    const { clusterSize, pageEntries } = image.geometry;
    const end = Math.ceil((at + length) / clusterSize);
    for (let cluster = Math.floor(at / clusterSize); cluster < end; ) {
      const place = this.#place(cluster);
      if (place instanceof Promise) {
        await place;
        continue;
      }
      const { page, entry } = place;
      const words = page.table;
      const most = Math.min(end - cluster, pageEntries - entry);
      const start = entryAt(words, entry);
      let count = 1;
      if (!isData(start)) {
        while (count < most && !isData(entryAt(words, entry + count))) count++;
        for (let i = 0; i < count; i++) setEntry(words, entry + i, ZERO_CLUSTER);
        image.l2.markDirty(page, entry * ENTRY_BYTES, (entry + count) * ENTRY_BYTES);
      } else {
        while (count < most && entryAt(words, entry + count) === start + count * clusterSize) count++;
        if (!image.validCluster(start) || !image.validCluster(start + (count - 1) * clusterSize)) {
          throw image.damaged(page.at + entry * ENTRY_BYTES);
        }
        await image.file.zero({ at: start, length: count * clusterSize }, options);
      }
      cluster += count;
    }
  }
}
