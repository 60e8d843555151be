/**
 * A storage in memory whose copies share pages until one of them writes. A crash test makes thousands of states of one
 * image; each costs a list of pages, not a copy of the image. Pages that were never written are holes.
 */
import type { DataRun, Range, Storage } from '../../src/engine/storage/storage.js';

const PAGE = 4096;

export class PagedStorage implements Storage {
  readonly filename: string;
  readonly driver = 'memory';
  readonly writable = true;
  readonly alignment = 1;
  #size = 0;
  #pages = new Map<number, Uint8Array>();
  /** Pages that no copy shares, and that may be written in place. */
  #own = new Set<number>();

  constructor(filename: string, content?: Uint8Array) {
    this.filename = filename;
    if (content !== undefined) this.put(0, content);
  }

  get size(): number {
    return this.#size;
  }

  /** A copy that shares all pages; either side may be written after. */
  fork(filename = this.filename): PagedStorage {
    const copy = new PagedStorage(filename);
    copy.#size = this.#size;
    copy.#pages = new Map(this.#pages);
    this.#own.clear();
    return copy;
  }

  /** All bytes, holes as zeros. For small images only. */
  bytes(): Uint8Array {
    const all = new Uint8Array(this.#size);
    this.get(0, all);
    return all;
  }

  get(at: number, into: Uint8Array): void {
    let done = 0;
    while (done < into.length) {
      const from = (at + done) % PAGE;
      const length = Math.min(PAGE - from, into.length - done);
      const page = this.#pages.get((at + done - from) / PAGE);
      if (page === undefined) into.fill(0, done, done + length);
      else into.set(page.subarray(from, from + length), done);
      done += length;
    }
  }

  put(at: number, from: Uint8Array): void {
    if (from.length === 0) return;
    let done = 0;
    while (done < from.length) {
      const into = (at + done) % PAGE;
      const length = Math.min(PAGE - into, from.length - done);
      this.#page((at + done - into) / PAGE).set(from.subarray(done, done + length), into);
      done += length;
    }
    this.#size = Math.max(this.#size, at + from.length);
  }

  /** Makes the range read as zeros, without growing. */
  clear(at: number, length: number): void {
    const end = Math.min(at + length, this.#size);
    if (end <= at) return;
    // past the size pages hold zeros only, so the last one may go whole
    const bound = end === this.#size ? Math.ceil(end / PAGE) * PAGE : end;
    const first = Math.floor(at / PAGE);
    const last = Math.floor((bound - 1) / PAGE);
    const all = last - first > this.#pages.size;
    const indices = all
      ? [...this.#pages.keys()]
      : Array.from({ length: last - first + 1 }, (_, i) => first + i);
    for (const index of indices) {
      if (index < first || index > last || !this.#pages.has(index)) continue;
      const from = Math.max(at - index * PAGE, 0);
      const to = Math.min(bound - index * PAGE, PAGE);
      if (from === 0 && to === PAGE) this.#pages.delete(index);
      else this.#page(index).fill(0, from, to);
    }
  }

  resize(size: number): void {
    if (size < this.#size) this.clear(size, this.#size - size);
    this.#size = size;
  }

  #page(index: number): Uint8Array {
    const page = this.#pages.get(index);
    if (page !== undefined && this.#own.has(index)) return page;
    const fresh = page === undefined ? new Uint8Array(PAGE) : page.slice();
    this.#pages.set(index, fresh);
    this.#own.add(index);
    return fresh;
  }

  async allocated(): Promise<number> {
    return this.#pages.size * PAGE;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    this.get(at, into);
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    this.put(at, from);
  }

  async zero(range: Range): Promise<void> {
    this.clear(range.at, range.length);
    this.#size = Math.max(this.#size, range.at + range.length);
  }

  async discard(range: Range): Promise<void> {
    this.clear(range.at, range.length);
  }

  async truncate(size: number): Promise<void> {
    this.resize(size);
  }

  async flush(): Promise<void> {}

  extent(range: Range): DataRun {
    const data = range.at < this.#size && this.#pages.has(Math.floor(range.at / PAGE));
    let length = 0;
    while (length < range.length) {
      const at = range.at + length;
      if (at >= this.#size) {
        if (!data) length = range.length;
        break;
      }
      if (this.#pages.has(Math.floor(at / PAGE)) !== data) break;
      length += Math.min(PAGE - (at % PAGE), range.length - length, this.#size - at);
    }
    return { data, length };
  }

  async close(): Promise<void> {}
}
