/** The active L1 table and its L2 tables for writing: made, copied where they are shared, and linked. */
import { ImageError } from '../../error.js';
import { hex, type Image, type L2Table } from './image.js';
import { l1Copied, l1Offset, setL1, storeTable } from './layout.js';
import type { Refcounts } from './refcounts.js';

/** Entries of the L1 table in one sector: the unit in which it is written. */
const L1_SECTOR_WORDS = 128;

export class Tables {
  readonly #image: Image;
  readonly #refcounts: Refcounts;
  readonly #dirtyL1 = new Set<number>();

  constructor(image: Image, refcounts: Refcounts) {
    this.#image = image;
    this.#refcounts = refcounts;
  }

  get l1Dirty(): boolean {
    return this.#dirtyL1.size > 0;
  }

  /** A writeback that has to come first, because memory holds as much as it should, or a running one to wait for. */
  due(): Promise<void> | undefined {
    const { writeback, l2 } = this.#image;
    if (writeback.running !== undefined) return writeback.running;
    return l2.crowded || this.#refcounts.crowded ? writeback.run() : undefined;
  }

  /** True where the guest range of this L1 entry has an L2 table. */
  has(index: number): boolean {
    return l1Offset(this.#image.l1, index) !== 0;
  }

  /** The L2 table of an L1 entry as it is, or undefined where there is none. */
  existing(index: number): L2Table | undefined | Promise<void> {
    const { l1, l2, geometry } = this.#image;
    const at = l1Offset(l1, index);
    if (at === 0) return undefined;
    const found = l2.peek(at);
    if (found !== undefined) return found;
    if (at % geometry.clusterSize !== 0 || !Number.isSafeInteger(at)) {
      throw this.#image.corrupt(`L2 table offset ${hex(at)} unaligned (L1 index: ${hex(index)})`);
    }
    return l2.load(at);
  }

  /**
   * The L2 table of an L1 entry, to be changed: made where there is none, copied where a snapshot shares it. What is
   * answered may be changed in the same turn only: a promise means to ask again.
   */
  writable(index: number): L2Table | Promise<void> {
    const due = this.due();
    if (due !== undefined) return due;
    const { l1, l2, geometry } = this.#image;
    const old = this.existing(index);
    if (old instanceof Promise) return old;
    if (old !== undefined && l1Copied(l1, index)) {
      // One that is dirty has been looked at.
      if (old.dirtyTo === 0) this.#image.guardMetadata(old.at, geometry.clusterSize, 'active-l2');
      return old;
    }
    if (!this.l1Dirty) this.#guardL1();
    const place = this.#refcounts.allocate(1);
    if (place instanceof Promise) return place;
    const words = old === undefined ? new Uint32Array(geometry.clusterSize / 4) : old.table.slice();
    const entry = l2.add(place.at, words);
    setL1(l1, index, place.at, true);
    this.#image.overlaps.addedL2(place.at);
    this.#dirtyL1.add(Math.floor((index * 2) / L1_SECTOR_WORDS));
    if (old !== undefined) this.#refcounts.deferFree(old.at, geometry.clusterSize);
    return entry;
  }

  #guardL1(): void {
    const { header } = this.#image;
    this.#image.guardMetadata(Number(header.l1TableOffset), header.l1Size * 8, 'active-l1');
  }

  /** Takes an L2 table out of the L1 table; its cluster is freed when that is durable. */
  unlink(index: number): void {
    const { l1, geometry } = this.#image;
    const at = l1Offset(l1, index);
    if (at === 0) return;
    setL1(l1, index, 0, false);
    this.#dirtyL1.add(Math.floor((index * 2) / L1_SECTOR_WORDS));
    this.#refcounts.deferFree(at, geometry.clusterSize);
  }

  /** Says of an L2 table whether its refcount is exactly one. */
  setL1Copied(index: number, copied: boolean): void {
    const { l1 } = this.#image;
    if (l1Copied(l1, index) === copied) return;
    // Reserved bits that damage has set go with it.
    setL1(l1, index, l1Offset(l1, index), copied);
    this.#dirtyL1.add(Math.floor((index * 2) / L1_SECTOR_WORDS));
  }

  changed(entry: L2Table, firstEntry: number, count: number): void {
    const { l2EntryBytes } = this.#image.geometry;
    this.#image.l2.markDirty(entry, firstEntry * l2EntryBytes, (firstEntry + count) * l2EntryBytes);
  }

  /** Writes the sectors of the L1 table that have changed. */
  async writeL1(): Promise<void> {
    const sectors = [...this.#dirtyL1].sort((a, b) => a - b);
    this.#dirtyL1.clear();
    const { l1, header, file } = this.#image;
    const start = Number(header.l1TableOffset);
    try {
      for (let i = 0; i < sectors.length; ) {
        let end = i + 1;
        while (end < sectors.length && sectors[end] === sectors[end - 1]! + 1) end++;
        const from = sectors[i]! * L1_SECTOR_WORDS;
        const to = Math.min(l1.length, (sectors[end - 1]! + 1) * L1_SECTOR_WORDS);
        file.event?.('l1_update', start + from * 4);
        await file.write(start + from * 4, storeTable(l1, from, to));
        i = end;
      }
    } catch (error) {
      for (const sector of sectors) this.#dirtyL1.add(sector);
      throw error;
    }
  }

  /** The image has moved its L1 table, whole and durable. */
  l1Replaced(): void {
    this.#dirtyL1.clear();
  }

  /** Guest offsets beyond the L1 table cannot be: the access path has checked the range. */
  indexOf(at: number): number {
    const index = Math.floor(at / this.#image.geometry.l2Span);
    if (index * 2 >= this.#image.l1.length)
      throw new ImageError('internal', 'guest offset beyond the L1 table');
    return index;
  }
}
