/**
 * Changes of a storage that stay in memory: an operation that is tried on it does all that it would do, and the storage below
 * is only read. What it would have taken of the host's space is counted.
 */
import { ImageError } from '../error.js';
import { checkRange, checkTruncate, checkWritable } from './check.js';
import type { FileIdentity } from './file-storage.js';
import { Spans } from './spans.js';
import type { DataRun, MaybePromise, Preallocation, Range, Storage } from './storage.js';

const PAGE = 4096;
/** Of a file that hosts keep account of in one page, at least. */
const RUNS_PER_PAGE = 64;

/** What all storages of one attempt have in memory together. */
export class ScratchMemory {
  #left: number;
  /** It was not enough: what failed since does not tell anything. */
  exhausted = false;

  constructor(bytes: number) {
    this.#left = bytes;
  }

  take(bytes: number): void {
    if (bytes > this.#left) {
      this.exhausted = true;
      throw new ImageError('limit', 'A dry run may not keep that much in memory', { check: 'scratch' });
    }
    this.#left -= bytes;
  }

  give(bytes: number): void {
    this.#left += bytes;
  }
}

export class ScratchStorage implements Storage {
  readonly filename: string;
  readonly driver: string;
  readonly writable = true;
  readonly alignment = 1;
  readonly below: Storage;
  readonly #memory: ScratchMemory;
  readonly #onClose: () => Promise<void>;
  /** By index, as they are now. */
  readonly #pages = new Map<number, Uint8Array>();
  /** Indices of those pages. */
  readonly #held = new Spans();
  /** Indices of pages that read as zeros, whatever is below, where they are not held. */
  readonly #zeros = new Spans();
  /** Indices of pages that the host would have had to allocate. */
  readonly #taken = new Spans();
  #size: number;

  /** `driver`: of what it stands for, where that is not what is below. */
  constructor(
    below: Storage,
    memory: ScratchMemory,
    options: { readonly driver?: string | undefined; readonly onClose?: () => Promise<void> } = {},
  ) {
    this.below = below;
    this.#memory = memory;
    this.filename = below.filename;
    this.driver = options.driver ?? below.driver;
    this.#onClose = options.onClose ?? (() => below.close());
    this.#size = below.size;
  }

  get size(): number {
    return this.#size;
  }

  get identity(): FileIdentity | undefined {
    return (this.below as { readonly identity?: FileIdentity }).identity;
  }

  get children(): ReadonlyMap<string, Storage> {
    return this.below.children ?? new Map();
  }

  get filtered(): Storage {
    return this.below;
  }

  allocated(): Promise<number | undefined> {
    return this.below.allocated();
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    checkRange(this.filename, 'read', at, into.length);
    for (let done = 0; done < into.length; ) {
      const from = at + done;
      const index = Math.floor(from / PAGE);
      const held = this.#held.run(index);
      const zero = this.#zeros.run(index);
      const end = held.inside ? index + 1 : Math.min(held.end, zero.end);
      const part = into.subarray(done, Math.min(into.length, end * PAGE - at));
      if (held.inside)
        part.set(
          this.#pages
            .get(index)!
            .subarray(from % PAGE)
            .subarray(0, part.length),
        );
      else if (zero.inside || from >= this.below.size) part.fill(0);
      else await this.below.read(from, part);
      done += part.length;
    }
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    this.#checkChange('write', at, from.length);
    if (from.length === 0) return;
    const end = at + from.length;
    this.#taken.add(Math.floor(at / PAGE), Math.ceil(end / PAGE));
    for (let done = 0; done < from.length; ) {
      const within = (at + done) % PAGE;
      const count = Math.min(PAGE - within, from.length - done);
      const page = await this.#page(Math.floor((at + done) / PAGE), count === PAGE);
      page.set(from.subarray(done, done + count), within);
      done += count;
    }
    this.#size = Math.max(this.#size, end);
  }

  async zero({ at, length }: Range, options: { readonly unmap?: boolean } = {}): Promise<void> {
    this.#checkChange('zero', at, length);
    if (length === 0) return;
    if (options.unmap !== true) this.claim({ at, length });
    await this.#clear(at, at + length);
    this.#size = Math.max(this.#size, at + length);
  }

  async discard({ at, length }: Range): Promise<void> {
    this.#checkChange('discard', at, length);
    await this.#clear(at, Math.min(at + length, this.#size));
  }

  async truncate(size: number, preallocation: Preallocation = 'off'): Promise<void> {
    this.#checkChange('truncate', 0, size);
    const { filename, driver } = this;
    checkTruncate({ filename, driver, size: this.#size }, size, preallocation);
    if (driver === 'host_device') return;
    // The first page of a new file is allocated.
    if (size < this.#size) await this.#clear(size, this.#size);
    else if (preallocation !== 'off') this.claim({ at: this.#size, length: size - this.#size });
    else if (this.#size === 0 && size > 0) this.claim({ at: 0, length: PAGE });
    this.#size = size;
  }

  async flush(): Promise<void> {}

  extent({ at, length }: Range): MaybePromise<DataRun> {
    checkRange(this.filename, 'extent', at, length);
    if (at >= this.#size) return { data: false, length };
    const index = Math.floor(at / PAGE);
    const held = this.#held.run(index);
    const zero = this.#zeros.run(index);
    const end = held.inside ? held.end : Math.min(held.end, zero.end);
    const run = { at, length: Math.min(length, end * PAGE - at, this.#size - at) };
    if (held.inside) return { data: true, length: run.length };
    if (zero.inside || at >= this.below.size) return { data: false, length: run.length };
    return this.below.extent(run);
  }

  close(): Promise<void> {
    return this.#onClose();
  }

  /** Counts the range as allocated by the host, without a change of its bytes. */
  claim({ at, length }: Range): void {
    if (length > 0) this.#taken.add(Math.floor(at / PAGE), Math.ceil((at + length) / PAGE));
  }

  /** As if bytes had been written there; what there was stays. */
  pretendWrite(range: Range): void {
    this.claim(range);
    this.#size = Math.max(this.#size, range.at + range.length);
  }

  /** Bytes that the host would have allocated at most: what was changed and is a hole now, and its own account of that. */
  async needed(): Promise<number> {
    let bytes = 0;
    let runs = 0;
    for (const [first, last] of this.#taken.runs()) {
      runs++;
      for (let at = first * PAGE; at < last * PAGE; ) {
        const rest = last * PAGE - at;
        if (at >= this.below.size) {
          bytes += rest;
          break;
        }
        const run = await this.below.extent({ at, length: Math.min(rest, this.below.size - at) });
        if (!run.data) bytes += run.length;
        at += run.length;
      }
    }
    return bytes === 0 ? 0 : bytes + PAGE * Math.ceil(1 + runs / RUNS_PER_PAGE);
  }

  #checkChange(operation: string, at: number, length: number): void {
    checkRange(this.filename, operation, at, length);
    checkWritable(this.filename, operation, this.below.writable);
  }

  /** The page for a change; `whole`: all of it will be. */
  async #page(index: number, whole: boolean): Promise<Uint8Array> {
    const held = this.#pages.get(index);
    if (held !== undefined) return held;
    this.#memory.take(PAGE);
    const page = new Uint8Array(PAGE);
    if (!whole) await this.read(index * PAGE, page);
    // Another change of the same page may have come first.
    const other = this.#pages.get(index);
    if (other !== undefined) {
      this.#memory.give(PAGE);
      return other;
    }
    this.#pages.set(index, page);
    this.#held.add(index, index + 1);
    return page;
  }

  /** The range reads as zeros; pages wholly in it are let go. */
  async #clear(from: number, to: number): Promise<void> {
    if (to <= from) return;
    const first = Math.ceil(from / PAGE);
    // Past the size there are zeros anyway.
    const last = to >= this.#size ? Math.ceil(to / PAGE) : Math.floor(to / PAGE);
    if (from % PAGE !== 0)
      await this.#clearIn(first - 1, from % PAGE, Math.min(PAGE, to - (first - 1) * PAGE));
    if (last < first) return;
    for (let at = first; at < last; ) {
      const { inside, end } = this.#held.run(at);
      for (let index = at; inside && index < Math.min(end, last); index++) {
        this.#pages.delete(index);
        this.#memory.give(PAGE);
      }
      at = end;
    }
    this.#held.remove(first, last);
    this.#zeros.add(first, last);
    if (to > last * PAGE) await this.#clearIn(last, 0, to - last * PAGE);
  }

  async #clearIn(index: number, from: number, to: number): Promise<void> {
    const { inside } = this.#zeros.run(index);
    if (inside && !this.#pages.has(index)) return;
    (await this.#page(index, false)).fill(0, from, to);
  }
}
