/** An open image: where its guest bytes are, and where new ones go. */
import { ImageError } from '../../error.js';
import type { CheckFacet, Extent, FormatInfo, FormatNode, WriteTarget } from '../../node/driver.js';
import type { MaybePromise, Range, Storage } from '../../storage/storage.js';
import { EntryTable, PAGE_ENTRIES } from '../entry-table.js';
import { later } from '../later.js';
import { GUEST_DATA, type Stage, Writeback } from '../metadata-cache.js';
import { Blocks } from './blocks.js';
import { vdiChecker } from './check.js';
import type { VdiImage } from './header.js';
import { BLOCK, DISCARDED, Header } from './layout.js';

/** One target covers at most so many blocks. */
const MAX_TARGET = 8;

export class VdiNode implements FormatNode {
  readonly size: number;
  readonly unit = BLOCK;
  readonly children: ReadonlyMap<string, Storage> = new Map();
  readonly startsAsZero = true;
  readonly dataHoles: boolean;
  readonly checker: CheckFacet | undefined;
  readonly #image: VdiImage;
  readonly #file: Storage;
  readonly #table: EntryTable;
  readonly #blocks: Blocks;
  readonly #writable: boolean;
  readonly #writeback: Writeback;

  /** `repairing`: opened to be repaired, which the format has no way to be. */
  constructor(image: VdiImage, writable: boolean, repairing: boolean) {
    this.#image = image;
    this.#file = image.file;
    this.size = image.size;
    this.dataHoles = image.isStatic;
    this.#writable = writable;
    const table = new EntryTable(image.file, image.mapOffset, image.blocks);
    const blocks = new Blocks(image, table);
    this.#table = table;
    this.#blocks = blocks;
    // The count first: blocks that it knows and the map does not are lost at worst; the other way round, they would be
    // given out twice.
    const header: Stage = {
      name: 'header',
      after: [],
      dirty: () => blocks.headerDirty,
      write: () => this.#writeCount(),
    };
    const map: Stage = {
      name: 'block map',
      after: [GUEST_DATA, header],
      dirty: () => table.dirty,
      write: () => table.write(),
    };
    this.#writeback = new Writeback([header, map], () => image.file.flush());
    this.checker = repairing
      ? undefined
      : vdiChecker(
          table,
          () => blocks.allocated,
          () => this.flush(),
        );
  }

  async #writeCount(): Promise<void> {
    const { allocated } = this.#blocks;
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, allocated, true);
    this.#blocks.headerDirty = false;
    try {
      await this.#file.write(Header.offsetOf('blocksAllocated'), bytes);
    } catch (error) {
      this.#blocks.headerDirty = true;
      throw error;
    }
  }

  #place(entry: number): number {
    return this.#image.dataOffset + entry * BLOCK;
  }

  map(range: Range): MaybePromise<Extent> {
    const page = this.#table.page(Math.floor(range.at / BLOCK));
    if (page === undefined) {
      return this.#table
        .load(Math.floor(range.at / BLOCK))
        .then((loaded) => this.#holes(this.#extent(loaded, range)));
    }
    return this.#holes(this.#extent(page, range));
  }

  locate(range: Range): MaybePromise<Extent> {
    const page = this.#table.page(Math.floor(range.at / BLOCK));
    if (page !== undefined) return this.#extent(page, range);
    return this.#table.load(Math.floor(range.at / BLOCK)).then((loaded) => this.#extent(loaded, range));
  }

  /** The run of blocks that are zeros, or that follow each other in the file, in one page of the map. */
  #extent(page: Uint32Array, { at, length }: Range): Extent {
    const block = Math.floor(at / BLOCK);
    const within = at - block * BLOCK;
    const first = block % PAGE_ENTRIES;
    const most = Math.min(PAGE_ENTRIES - first, Math.ceil((within + length) / BLOCK));
    const entry = page[first]!;
    let count = 1;
    if (entry >= DISCARDED) {
      while (count < most && page[first + count]! >= DISCARDED) count++;
      return { kind: 'zero', length: Math.min(length, count * BLOCK - within) };
    }
    while (count < most && page[first + count] === entry + count && entry + count < DISCARDED) count++;
    return {
      kind: 'data',
      length: Math.min(length, count * BLOCK - within),
      storage: this.#file,
      at: this.#place(entry) + within,
    };
  }

  /** The blocks of a static image are all there; which of them have data, the host knows. */
  #holes(extent: Extent): MaybePromise<Extent> {
    if (extent.kind !== 'data' || !this.#image.isStatic) return extent;
    const { at, storage, length } = extent;
    const run = storage.extent({ at, length });
    if (run instanceof Promise) {
      return run.then((found) => ({ kind: found.data ? 'data' : 'zero', length: found.length, storage, at }));
    }
    return { kind: run.data ? 'data' : 'zero', length: run.length, storage, at };
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    const found = this.#attempt(range);
    return found instanceof Promise ? later(found, () => this.#attempt(range)) : found;
  }

  #attempt({ at, length }: Range): WriteTarget | Promise<unknown> {
    const block = Math.floor(at / BLOCK);
    const page = this.#table.page(block);
    if (page === undefined) return this.#table.load(block);
    const within = at - block * BLOCK;
    const index = block % PAGE_ENTRIES;
    const most = Math.min(MAX_TARGET, PAGE_ENTRIES - index, Math.ceil((within + length) / BLOCK));
    const entry = page[index]!;
    let count = 1;
    if (entry < DISCARDED) {
      while (count < most && page[index + count] === entry + count && entry + count < DISCARDED) count++;
      const place = this.#checkPlace(entry, count) + within;
      const run = Math.min(length, count * BLOCK - within);
      return { storage: this.#file, at: place, length: run, fillBefore: 0, fillAfter: 0 };
    }
    if (this.#table.crowded) return this.#writeback.run();
    while (count < most && page[index + count]! >= DISCARDED) count++;
    const taken = this.#blocks.take(count);
    if (taken instanceof Promise) return taken;
    const run = Math.min(length, taken.count * BLOCK - within);
    return {
      storage: this.#file,
      at: this.#checkPlace(taken.first, taken.count) + within,
      length: run,
      fillBefore: within,
      fillAfter: taken.count * BLOCK - within - run,
      commit: () => this.#link(block, taken.first, taken.count),
      abort: () => this.#blocks.giveBack(taken.first, taken.count),
    };
  }

  /** Where a block is; never inside the metadata, whatever the header says. */
  #checkPlace(entry: number, count: number): number {
    const place = this.#place(entry);
    const { mapOffset, blocks } = this.#image;
    const overlapsMap = place < mapOffset + blocks * 4 && place + count * BLOCK > mapOffset;
    if (place < Header.size || overlapsMap) {
      throw new ImageError('corrupt', `VDI block ${entry} at offset ${place} overlaps the image's metadata`, {
        path: this.#file.filename,
        offset: place,
        errno: 'EIO',
      });
    }
    return place;
  }

  /** Not while a writeback runs: it has settled already what must be on the disk before the map. */
  #link(block: number, first: number, count: number): MaybePromise<void> {
    const waits = this.#writeback.running;
    if (waits !== undefined) return waits.then(() => this.#link(block, first, count));
    if (this.#table.page(block) === undefined) {
      return this.#table.load(block).then(() => this.#link(block, first, count));
    }
    this.#table.set(block, count, first, 1);
    this.#blocks.linked(first, count);
  }

  /** What is not allocated reads as zeros already; the place of what is allocated stays its own. */
  async zero(range: Range, options: { readonly unmap: boolean }): Promise<boolean> {
    const end = range.at + range.length;
    for (let at = range.at; at < end; ) {
      const extent = await this.locate({ at, length: end - at });
      if (extent.kind === 'data') {
        const entry = Math.floor((extent.at - this.#image.dataOffset) / BLOCK);
        this.#checkPlace(entry, Math.ceil((extent.at + extent.length - this.#place(entry)) / BLOCK));
        await this.#file.zero({ at: extent.at, length: extent.length }, options);
      }
      at += extent.length;
    }
    return true;
  }

  async flush(): Promise<void> {
    if (this.#writable) await this.#writeback.run();
  }

  close(): Promise<void> {
    return this.flush();
  }

  info(): FormatInfo {
    return { clusterSize: BLOCK, dirty: false };
  }
}
