/** A storage in memory, sparse by pages, so that huge sizes cost nothing. For tests, crash and fuzz suites, and NBD exports. */
import { ImageError } from '../error.js';
import { checkRange, checkWritable, requestError } from './check.js';
import type { DataRun, Range, Storage } from './storage.js';

const PAGE = 64 * 1024;

export interface MemoryOptions {
  readonly filename?: string;
  readonly writable?: boolean;
  /** Bytes of pages that may be held; a write beyond fails as a full disk does. */
  readonly capacity?: number;
}

export class MemoryStorage implements Storage {
  readonly filename: string;
  readonly driver = 'memory';
  readonly writable: boolean;
  readonly alignment = 1;
  readonly #pages = new Map<number, Uint8Array>();
  readonly #capacity: number;
  #size: number;
  #open = true;

  /** With the bytes given (copied), or of a length in bytes that reads as zeros. */
  constructor(content: Uint8Array | number = 0, options: MemoryOptions = {}) {
    this.filename = options.filename ?? 'memory';
    this.writable = options.writable ?? true;
    this.#capacity = options.capacity ?? Number.POSITIVE_INFINITY;
    if (typeof content === 'number') {
      checkRange(this.filename, 'open', 0, content);
      this.#size = content;
    } else {
      this.#size = 0;
      this.#put(0, content);
    }
  }

  get size(): number {
    return this.#size;
  }

  async allocated(): Promise<number> {
    return this.#pages.size * PAGE;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    this.#check('read', at, into.length);
    this.#get(at, into);
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    this.#checkChange('write', at, from.length);
    this.#put(at, from);
  }

  async zero({ at, length }: Range): Promise<void> {
    this.#checkChange('zero', at, length);
    this.#clear(at, at + length);
    if (length > 0) this.#size = Math.max(this.#size, at + length);
  }

  async discard({ at, length }: Range): Promise<void> {
    this.#checkChange('discard', at, length);
    this.#clear(at, Math.min(at + length, this.#size));
  }

  async truncate(size: number): Promise<void> {
    this.#checkChange('truncate', 0, size);
    this.#clear(size, this.#size);
    this.#size = size;
  }

  async flush(): Promise<void> {
    this.#check('flush', 0, 0);
  }

  extent({ at, length }: Range): DataRun {
    this.#check('extent', at, length);
    if (at >= this.#size) return { data: false, length };
    const first = Math.floor(at / PAGE);
    const last = Math.floor((Math.min(at + length, this.#size) - 1) / PAGE);
    const data = this.#pages.has(first);
    const end = data ? this.#nextHole(first, last) : this.#nextData(first, last);
    // A hole that reaches the end goes on past it; data ends there.
    const until = end > last ? (data ? Math.min(at + length, this.#size) : at + length) : end * PAGE;
    return { data, length: until - at };
  }

  async close(): Promise<void> {
    this.#open = false;
  }

  /** A copy of the content, all of it or a range; also after `close`. */
  bytes(range: Range = { at: 0, length: this.#size }): Uint8Array {
    checkRange(this.filename, 'read', range.at, range.length);
    const copy = new Uint8Array(range.length);
    this.#get(range.at, copy);
    return copy;
  }

  /** Another storage with the same content now: what a crash at this moment would leave. */
  clone(options: MemoryOptions = {}): MemoryStorage {
    const copy = new MemoryStorage(this.#size, { filename: this.filename, ...options });
    for (const [index, page] of this.#pages) copy.#pages.set(index, page.slice());
    return copy;
  }

  #check(operation: string, at: number, length: number): void {
    if (!this.#open)
      throw new ImageError('internal', `${operation} on a closed storage`, { path: this.filename });
    checkRange(this.filename, operation, at, length);
  }

  #checkChange(operation: string, at: number, length: number): void {
    this.#check(operation, at, length);
    checkWritable(this.filename, operation, this.writable);
  }

  #get(at: number, into: Uint8Array): void {
    for (let done = 0; done < into.length; ) {
      const index = Math.floor((at + done) / PAGE);
      const within = at + done - index * PAGE;
      const count = Math.min(PAGE - within, into.length - done);
      const page = this.#pages.get(index);
      if (page === undefined) into.fill(0, done, done + count);
      else into.set(page.subarray(within, within + count), done);
      done += count;
    }
  }

  #put(at: number, from: Uint8Array): void {
    for (let done = 0; done < from.length; ) {
      const index = Math.floor((at + done) / PAGE);
      const within = at + done - index * PAGE;
      const count = Math.min(PAGE - within, from.length - done);
      let page = this.#pages.get(index);
      if (page === undefined) {
        if ((this.#pages.size + 1) * PAGE > this.#capacity) {
          throw requestError({ code: 'ENOSPC' }, this.filename, 'write', at + done);
        }
        page = new Uint8Array(PAGE);
        this.#pages.set(index, page);
      }
      page.set(from.subarray(done, done + count), within);
      done += count;
      this.#size = Math.max(this.#size, at + done);
    }
  }

  /** Drops the pages that lie wholly in the range and zeroes the rest of it. */
  #clear(from: number, to: number): void {
    if (to <= from) return;
    const first = Math.floor(from / PAGE);
    const last = Math.floor((to - 1) / PAGE);
    // Past the size pages hold zeros only, so the last one goes too.
    const bound = to >= this.#size ? (last + 1) * PAGE : to;
    for (const index of this.#indices(first, last)) {
      const begin = Math.max(from - index * PAGE, 0);
      const end = Math.min(bound - index * PAGE, PAGE);
      if (begin === 0 && end === PAGE) this.#pages.delete(index);
      else this.#pages.get(index)?.fill(0, begin, end);
    }
  }

  /** Indices of existing pages from `first` to `last`, by whichever way is shorter. */
  #indices(first: number, last: number): number[] {
    const found: number[] = [];
    if (last - first < this.#pages.size) {
      for (let index = first; index <= last; index++) if (this.#pages.has(index)) found.push(index);
    } else {
      for (const index of this.#pages.keys()) if (index >= first && index <= last) found.push(index);
    }
    return found;
  }

  #nextHole(from: number, last: number): number {
    let index = from;
    while (index <= last && this.#pages.has(index)) index++;
    return index;
  }

  #nextData(from: number, last: number): number {
    if (last - from < this.#pages.size) {
      let index = from;
      while (index <= last && !this.#pages.has(index)) index++;
      return index;
    }
    let next = last + 1;
    for (const index of this.#pages.keys()) if (index > from && index < next) next = index;
    return next;
  }
}
