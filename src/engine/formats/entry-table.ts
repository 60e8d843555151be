/**
 * A flat table of 32-bit entries in a file (VDI's block map, Parallels' and VHD's BAT), in memory by pages: however
 * long the table is, a bounded part of it is held.
 */
import { endianness } from 'node:os';
import type { Storage } from '../storage/storage.js';

/** Entries in a page: 64 KiB of the file. */
export const PAGE_ENTRIES = 16384;
const PAGE_BYTES = PAGE_ENTRIES * 4;
/** Pages that are held; more only while they are dirty. */
const MAX_PAGES = 512;
/** Entries are written in whole sectors of the file, so that a torn write harms no neighbour. */
const SECTOR = 512;
const HOST = endianness() === 'BE' ? 'big' : 'little';

interface Page {
  readonly entries: Uint32Array;
  /** Entries that differ from the file: [from, to). */
  dirtyFrom: number;
  dirtyTo: number;
}

export class EntryTable {
  readonly #swapped: boolean;
  readonly #file: Storage;
  /** Byte offset of entry 0, a multiple of 4. */
  readonly #at: number;
  readonly count: number;
  /** Least recently used first. */
  readonly #pages = new Map<number, Page>();
  readonly #loading = new Map<number, Promise<Uint32Array>>();
  readonly #dirty = new Set<number>();
  #lastIndex = -1;
  #last: Page | undefined;

  constructor(file: Storage, at: number, count: number, order: 'little' | 'big' = 'little') {
    this.#swapped = order !== HOST;
    this.#file = file;
    this.#at = at;
    this.count = count;
  }

  get dirty(): boolean {
    return this.#dirty.size > 0;
  }

  /** Time for a writeback: as much is dirty as should be held. */
  get crowded(): boolean {
    return this.#dirty.size >= MAX_PAGES;
  }

  /**
   * The page with entry `index` where it is at hand: entry i of the table is at `i % PAGE_ENTRIES`. The last page holds
   * zeros after the last entry.
   */
  page(index: number): Uint32Array | undefined {
    return this.#page(Math.floor(index / PAGE_ENTRIES))?.entries;
  }

  #page(number: number): Page | undefined {
    if (this.#lastIndex === number) return this.#last;
    const page = this.#pages.get(number);
    if (page === undefined) return undefined;
    this.#pages.delete(number);
    this.#pages.set(number, page);
    this.#lastIndex = number;
    this.#last = page;
    return page;
  }

  /** Brings the page with entry `index` into memory. What lies past the end of the file is zeros. */
  load(index: number): Promise<Uint32Array> {
    const number = Math.floor(index / PAGE_ENTRIES);
    let loading = this.#loading.get(number);
    if (loading === undefined) {
      loading = this.#read(number).finally(() => this.#loading.delete(number));
      this.#loading.set(number, loading);
    }
    return loading;
  }

  async #read(number: number): Promise<Uint32Array> {
    const held = this.#page(number);
    if (held !== undefined) return held.entries;
    const first = number * PAGE_ENTRIES;
    const bytes = new Uint8Array(PAGE_BYTES);
    const length = Math.min(PAGE_ENTRIES, this.count - first) * 4;
    const at = this.#at + first * 4;
    if (at < this.#file.size) await this.#file.read(at, bytes.subarray(0, length));
    if (this.#swapped) Buffer.from(bytes.buffer).swap32();
    const page: Page = { entries: new Uint32Array(bytes.buffer), dirtyFrom: 0, dirtyTo: 0 };
    this.#pages.set(number, page);
    if (this.#pages.size > MAX_PAGES) this.#evict(number);
    return page.entries;
  }

  #evict(keep: number): void {
    for (const number of this.#pages.keys()) {
      if (this.#pages.size <= MAX_PAGES) return;
      if (number === keep || this.#dirty.has(number)) continue;
      this.#pages.delete(number);
      if (this.#lastIndex === number) this.#lastIndex = -1;
    }
  }

  /** Sets entries [first, first + count) to `value`, `value + step`, ...; their page is at hand, one for all. */
  set(first: number, count: number, value: number, step: number): void {
    const number = Math.floor(first / PAGE_ENTRIES);
    const page = this.#page(number)!;
    const from = first % PAGE_ENTRIES;
    for (let i = 0; i < count; i++) page.entries[from + i] = value + i * step;
    if (page.dirtyTo === 0) {
      page.dirtyFrom = from;
      page.dirtyTo = from + count;
      this.#dirty.add(number);
    } else {
      page.dirtyFrom = Math.min(page.dirtyFrom, from);
      page.dirtyTo = Math.max(page.dirtyTo, from + count);
    }
  }

  /** Writes what is dirty. What fails to be written stays dirty. */
  async write(): Promise<void> {
    for (const number of [...this.#dirty].sort((a, b) => a - b)) {
      const page = this.#pages.get(number)!;
      const start = this.#at + number * PAGE_BYTES;
      const end = this.#at + this.count * 4;
      // Whole sectors of the file, but nothing of what stands before or after the table.
      const from = Math.max(start, floorTo(start + page.dirtyFrom * 4, SECTOR));
      const to = Math.min(start + PAGE_BYTES, end, ceilTo(start + page.dirtyTo * 4, SECTOR));
      // A copy: changes made during the write neither tear it nor get lost.
      const copy = Buffer.from(page.entries.buffer.slice(from - start, to - start) as ArrayBuffer);
      if (this.#swapped) copy.swap32();
      const { dirtyFrom, dirtyTo } = page;
      page.dirtyFrom = 0;
      page.dirtyTo = 0;
      this.#dirty.delete(number);
      try {
        await this.#file.write(from, copy);
      } catch (error) {
        page.dirtyFrom = page.dirtyTo === 0 ? dirtyFrom : Math.min(page.dirtyFrom, dirtyFrom);
        page.dirtyTo = Math.max(page.dirtyTo, dirtyTo);
        this.#dirty.add(number);
        throw error;
      }
    }
    this.#evict(-1);
  }

  /** Forgets what is not dirty: the file was changed by other means. */
  forget(): void {
    for (const number of [...this.#pages.keys()]) if (!this.#dirty.has(number)) this.#pages.delete(number);
    this.#lastIndex = -1;
  }

  /**
   * Calls `visit` with every page in turn: its entries, the index of the first, and how many there are. Pages that lie wholly
   * past the end of the file are left out (they read as zeros); gives the index where that begins.
   */
  async scan(
    visit: (entries: Uint32Array, first: number, count: number) => MaybePromiseVoid,
    pause?: (done: number) => void,
  ): Promise<number> {
    for (let first = 0; first < this.count; first += PAGE_ENTRIES) {
      if (this.#at + first * 4 >= this.#file.size) return first;
      const entries = this.page(first) ?? (await this.load(first));
      const waits = visit(entries, first, Math.min(PAGE_ENTRIES, this.count - first));
      if (waits !== undefined) await waits;
      pause?.(first);
    }
    return this.count;
  }
}

type MaybePromiseVoid = Promise<void> | void;

function floorTo(value: number, unit: number): number {
  return value - (value % unit);
}
function ceilTo(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}

/** A set of whole numbers below 2^32, held in parts: what is not near a member costs nothing. */
export class SparseBits {
  readonly #parts = new Map<number, Uint32Array>();

  has(bit: number): boolean {
    const part = this.#parts.get(Math.floor(bit / PART_BITS));
    if (part === undefined) return false;
    const within = bit % PART_BITS;
    return ((part[within >>> 5]! >>> (within & 31)) & 1) !== 0;
  }

  /** Adds it; false where it was there. */
  add(bit: number): boolean {
    const number = Math.floor(bit / PART_BITS);
    let part = this.#parts.get(number);
    if (part === undefined) {
      part = new Uint32Array(PART_BITS / 32);
      this.#parts.set(number, part);
    }
    const within = bit % PART_BITS;
    const mask = 1 << (within & 31);
    if ((part[within >>> 5]! & mask) !== 0) return false;
    part[within >>> 5]! |= mask;
    return true;
  }

  delete(bit: number): void {
    const part = this.#parts.get(Math.floor(bit / PART_BITS));
    const within = bit % PART_BITS;
    if (part !== undefined) part[within >>> 5]! &= ~(1 << (within & 31));
  }

  /** The first number from `from` on that is not there. */
  firstAbsent(from: number): number {
    let bit = from;
    for (;;) {
      const part = this.#parts.get(Math.floor(bit / PART_BITS));
      if (part === undefined) return bit;
      const within = bit % PART_BITS;
      if (part[within >>> 5] === 0xffff_ffff) {
        bit += 32 - (within & 31);
        continue;
      }
      if (!this.has(bit)) return bit;
      bit++;
    }
  }
}

const PART_BITS = 32768;
