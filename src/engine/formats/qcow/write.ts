/** Writing guest clusters: where new ones go, and how they are linked after they were written. */
import { ImageError } from '../../error.js';
import type { WriteTarget } from '../../node/driver.js';
import type { MaybePromise, Range } from '../../storage/storage.js';
import { later } from '../later.js';
import type { PackedReader } from '../packed-reader.js';
import type { QcowImage, Table } from './image.js';
import {
  ENTRY_BYTES,
  entryAt,
  isCompressed,
  L1_PAGE_BYTES,
  packedLimit,
  setEntry,
  setPacked,
} from './layout.js';

/** One target covers at most this many guest bytes. */
const MAX_TARGET = 8 << 20;
const PAGE_ENTRIES = L1_PAGE_BYTES / ENTRY_BYTES;

interface Place {
  readonly table: Table;
  readonly entry: number;
}

export class Writer {
  readonly #image: QcowImage;
  readonly #packed: PackedReader;

  constructor(image: QcowImage, packed: PackedReader) {
    this.#image = image;
    this.#packed = packed;
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    const found = this.#attempt(range);
    return found instanceof Promise ? later(found, () => this.#attempt(range)) : found;
  }

  /**
   * The entry of a guest cluster (by index), in a table that is made where there is none; it may be changed in the same
   * turn. A promise means to ask again.
   */
  #place(cluster: number): Place | Promise<void> {
    const image = this.#image;
    const { l2Entries, l2Bytes, clusterSize } = image.geometry;
    const due = image.due();
    if (due !== undefined) return due;
    const index = Math.floor(cluster / l2Entries);
    const page = image.l1Page(index);
    if (page instanceof Promise) return page;
    const entry = cluster % l2Entries;
    const slot = index % PAGE_ENTRIES;
    const at = entryAt(page.table, slot);
    if (at !== 0) {
      if (!image.validTable(at)) throw image.damaged(image.l1At + index * ENTRY_BYTES);
      const table = image.l2.get(at);
      return table instanceof Promise ? table : { table, entry };
    }
    const fresh = image.allocate(l2Bytes, clusterSize);
    const table = image.l2.add(fresh, new Uint32Array(l2Bytes / 4));
    setEntry(page.table, slot, fresh);
    image.l1.markDirty(page, slot * ENTRY_BYTES, (slot + 1) * ENTRY_BYTES);
    return { table, entry };
  }

  #attempt({ at, length }: Range): WriteTarget | Promise<void> {
    const image = this.#image;
    const { clusterSize, l2Entries } = image.geometry;
    const first = Math.floor(at / clusterSize);
    const wanted = Math.ceil((at + Math.min(length, MAX_TARGET)) / clusterSize) - first;
    const place = this.#place(first);
    if (place instanceof Promise) return place;
    const { table, entry } = place;
    const words = table.table;
    const most = Math.min(wanted, l2Entries - entry);
    const skip = at - first * clusterSize;
    const isPlain = (index: number) => !isCompressed(words, index) && entryAt(words, index) !== 0;
    let count = 1;
    if (isPlain(entry)) {
      const start = entryAt(words, entry);
      while (count < most && entryAt(words, entry + count) === start + count * clusterSize) count++;
      if (!image.validCluster(start)) throw image.damaged(table.at + entry * ENTRY_BYTES);
      const covered = Math.min(length, count * clusterSize - skip);
      return { storage: image.file, at: start + skip, length: covered, fillBefore: 0, fillAfter: 0 };
    }
    while (count < most && !isPlain(entry + count)) count++;
    const covered = Math.min(length, count * clusterSize - skip);
    const bytes = count * clusterSize;
    const host = image.allocate(bytes, clusterSize);
    return {
      storage: image.file,
      at: host + skip,
      length: covered,
      fillBefore: skip,
      fillAfter: bytes - skip - covered,
      commit: () => this.#link(first, count, host),
      abort: () => image.giveBack(host, bytes),
    };
  }

  /** The clusters are in one table. */
  #link(first: number, count: number, host: number): MaybePromise<void> {
    const place = this.#place(first);
    if (place instanceof Promise) return place.then(() => this.#link(first, count, host));
    const { table, entry } = place;
    const { clusterSize } = this.#image.geometry;
    this.#packed.forget();
    for (let i = 0; i < count; i++) setEntry(table.table, entry + i, host + i * clusterSize);
    this.#image.l2.markDirty(table, entry * ENTRY_BYTES, (entry + count) * ENTRY_BYTES);
  }

  /** Stores one compressed cluster: right behind the last byte of the file, wherever that is. */
  async writePacked(at: number, packed: Uint8Array): Promise<void> {
    const image = this.#image;
    const { file, geometry } = image;
    const cluster = at / geometry.clusterSize;
    // The table first, as the reference lays it out.
    for (let place = this.#place(cluster); place instanceof Promise; place = this.#place(cluster))
      await place;
    const host = image.allocate(packed.byteLength, 1);
    try {
      if (host + packed.byteLength > packedLimit(geometry)) {
        throw new ImageError('no-space', 'File too large', { errno: 'EFBIG', path: file.filename });
      }
      await file.write(host, packed);
    } catch (error) {
      image.giveBack(host, packed.byteLength);
      throw error;
    }
    let place = this.#place(cluster);
    while (place instanceof Promise) {
      await place;
      place = this.#place(cluster);
    }
    const { table, entry } = place;
    this.#packed.forget();
    setPacked(table.table, entry, host, packed.byteLength, geometry);
    image.l2.markDirty(table, entry * ENTRY_BYTES, (entry + 1) * ENTRY_BYTES);
  }
}
