/**
 * Writing dynamic disks: "Implementing a Dynamic Disk". A new block takes the place of the footer, so that the footer has
 * to go first. It is moved ahead by many blocks at once, and stands at the end of the file at every instant: it is on stable
 * storage in its new place before anything is written over the old one. The space between is a hole, and goes when the image
 * is closed. An entry of the table is written when the block that it refers to, bitmap and data, is on stable storage.
 */
import { ImageError } from '../../error.js';
import type { WriteTarget } from '../../node/driver.js';
import type { MaybePromise, Range, Storage } from '../../storage/storage.js';
import { PAGE_ENTRIES, SparseBits } from '../entry-table.js';
import type { BlockMap } from './blocks.js';
import { Footer, SECTOR, UNUSED } from './layout.js';
import { roundedSize, type VpcImage } from './open.js';

type DynamicImage = VpcImage & { readonly blocks: NonNullable<VpcImage['blocks']> };

/** The footer is moved ahead by as much as the file has, within these bounds. */
const LEAST_AHEAD = 64 * 1024 * 1024;
const MOST_AHEAD = 1024 * 1024 * 1024;
/** Blocks that are given their places at once. */
const MAX_CHOSEN = 4096;

export class BlockWriter {
  readonly #image: DynamicImage;
  readonly #file: Storage;
  readonly #map: BlockMap;
  /** Set while the table is written: entries must not be added until it is done. */
  #writing: Promise<void> | undefined;
  /** Where the next block goes. */
  #free: number;
  /** Where the footer at the end is; undefined before the first new block. */
  #footerAt: number | undefined;
  /** Blocks whose bitmap is known to be all ones. */
  readonly #marked = new SparseBits();
  /** Places of blocks that are not in the table so far. */
  readonly #places = new Map<number, number>();
  #ones: Buffer | undefined;

  constructor(image: DynamicImage, map: BlockMap) {
    this.#image = image;
    this.#file = image.file;
    this.#map = map;
    this.#free = image.blocks.end;
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    const { blockSize, table } = this.#image.blocks;
    const block = Math.floor(range.at / blockSize);
    const page = table.page(block);
    if (page === undefined) return table.load(block).then(() => this.prepareWrite(range));
    const within = range.at - block * blockSize;
    const length = Math.min(range.length, blockSize - within);
    const entry = page[block % PAGE_ENTRIES]!;
    if (entry !== UNUSED) {
      this.#map.checkWritable(block, entry);
      const at = entry * SECTOR;
      const commit = this.#marked.has(block) ? undefined : () => this.#mark(block, at);
      return this.#target(at, within, length, commit);
    }
    const known = this.#places.get(block);
    if (known !== undefined) return this.#newBlock(block, known, within, length);
    const end = this.#free + this.#blocksIn(range) * this.#image.blocks.slot;
    const place = () => {
      this.#choose(block, end);
      return this.#newBlock(block, this.#places.get(block)!, within, length);
    };
    if (this.#footerAt !== undefined && end <= this.#footerAt) return place();
    if (Math.ceil(end / SECTOR) >= UNUSED) {
      return Promise.reject(new ImageError('no-space', 'File too large', { errno: 'EFBIG' }));
    }
    return this.#makeRoom(end).then(place);
  }

  /** How many blocks a write takes: those to the end of its range that are not there, one after another. */
  #blocksIn(range: Range): number {
    const { blockSize, table } = this.#image.blocks;
    const first = Math.floor(range.at / blockSize);
    const last = Math.min(Math.floor((range.at + range.length - 1) / blockSize), first + MAX_CHOSEN - 1);
    let next = first;
    while (next <= last && table.page(next)?.[next % PAGE_ENTRIES] === UNUSED && !this.#places.has(next))
      next++;
    return next - first;
  }

  /** All blocks of one write are given their places at once, so that those of other writes do not come between. */
  #choose(first: number, end: number): void {
    for (let block = first; this.#free < end; block++) {
      this.#places.set(block, this.#free);
      this.#free += this.#image.blocks.slot;
    }
  }

  #newBlock(block: number, at: number, within: number, length: number): WriteTarget {
    return this.#target(at, within, length, () => this.#link(block, at));
  }

  /** A target in the block at `at`. What is not written of a new block is zeros there already. */
  #target(
    at: number,
    within: number,
    length: number,
    commit: (() => MaybePromise<void>) | undefined,
  ): WriteTarget {
    return {
      storage: this.#file,
      at: at + this.#image.blocks.bitmapSize + within,
      length,
      fillBefore: 0,
      fillAfter: 0,
      ...(commit === undefined ? {} : { commit }),
    };
  }

  get #bitmapOfOnes(): Buffer {
    this.#ones ??= Buffer.alloc(this.#image.blocks.bitmapSize, 0xff);
    return this.#ones;
  }

  async #link(block: number, at: number): Promise<void> {
    // As the reference has it: every sector counts as written, and holds what it should either way.
    await this.#file.write(at, this.#bitmapOfOnes);
    this.#marked.add(block);
    const { table } = this.#image.blocks;
    // An entry that came in while a writeback runs would be written without waiting for its data.
    for (;;) {
      if (this.#writing !== undefined) await this.#writing;
      else if (table.page(block) === undefined) await table.load(block);
      else break;
    }
    table.set(block, 1, at / SECTOR, 0);
    this.#places.delete(block);
    if (table.crowded) await this.flush();
  }

  /** Other programs go by the bitmap: what is written into a block of theirs must be marked as being there. */
  async #mark(block: number, at: number): Promise<void> {
    const ones = this.#bitmapOfOnes;
    const bitmap = Buffer.alloc(ones.length);
    await this.#file.read(at, bitmap);
    if (!bitmap.equals(ones)) await this.#file.write(at, ones);
    this.#marked.add(block);
  }

  /** Moves the footer ahead so that `end` is free. */
  async #makeRoom(end: number): Promise<void> {
    const file = this.#file;
    const { footerBytes, blocks } = this.#image;
    let old = this.#footerAt;
    if (old === undefined) {
      const size = roundedSize(file);
      const last = size - Footer.size;
      const tail = new Uint8Array(Footer.size);
      if (last >= this.#free) await file.read(last, tail);
      if (last >= this.#free && Buffer.compare(tail, footerBytes) === 0) {
        // Blocks that a crash left behind may be there. New ones begin as zeros.
        if (last > this.#free) {
          await file.zero({ at: this.#free, length: last - this.#free }, { unmap: true });
        }
        this.#footerAt = old = last;
        if (end <= old) return;
      }
    }
    const before = Math.max(roundedSize(file), this.#free);
    const ahead = Math.min(Math.max(before, LEAST_AHEAD), MOST_AHEAD);
    const limit = blocks.metadataEnd + blocks.table.count * blocks.slot;
    const next = Math.max(end, before, Math.min(end + ahead, limit));
    await file.write(next, footerBytes);
    await file.flush();
    if (old !== undefined) await file.zero({ at: old, length: Footer.size });
    // What was at the end was no footer.
    else if (before > this.#free) await file.zero({ at: this.#free, length: before - this.#free });
    this.#footerAt = next;
  }

  /** Makes a range read as zeros; blocks that are not there do already. */
  async zero(range: Range, options: { readonly unmap: boolean }): Promise<void> {
    const { blockSize, bitmapSize, table } = this.#image.blocks;
    const end = range.at + range.length;
    for (let at = range.at; at < end; ) {
      const block = Math.floor(at / blockSize);
      const page = table.page(block) ?? (await table.load(block));
      let entry = page[block % PAGE_ENTRIES]!;
      const place = this.#places.get(block);
      // A write into a new block is under way, or has failed: the block may be linked yet.
      if (entry === UNUSED && place !== undefined) entry = place / SECTOR;
      if (entry === UNUSED) {
        const run = this.#map.unusedRun(page, block, { at, length: end - at });
        at = this.#places.size === 0 ? at + run : Math.min(end, (block + 1) * blockSize);
        continue;
      }
      this.#map.checkWritable(block, entry);
      const length = Math.min(end, (block + 1) * blockSize) - at;
      const within = at - block * blockSize;
      await this.#file.zero({ at: entry * SECTOR + bitmapSize + within, length }, options);
      at += length;
    }
  }

  /** Data first: entries reach the table only when what they refer to is on stable storage. */
  async flush(): Promise<void> {
    while (this.#writing !== undefined) await this.#writing;
    const work = this.#writeTable();
    // Those who wait only want to know when it is done; the error is for whoever asked.
    this.#writing = work.catch(() => {});
    try {
      await work;
    } finally {
      this.#writing = undefined;
    }
  }

  async #writeTable(): Promise<void> {
    const { table } = this.#image.blocks;
    await this.#file.flush();
    if (!table.dirty) return;
    await table.write();
    await this.#file.flush();
  }

  /** Ends the file where its blocks end: the footer comes there first. */
  async close(): Promise<void> {
    await this.flush();
    const footerAt = this.#footerAt;
    if (footerAt === undefined) return;
    // Places at the end that nothing was written to, or that failed to be.
    const unused = [...this.#places.values()].sort((a, b) => b - a);
    for (const at of unused) {
      if (at + this.#image.blocks.slot !== this.#free) break;
      this.#free = at;
    }
    this.#places.clear();
    if (footerAt === this.#free) return;
    await this.#file.write(this.#free, this.#image.footerBytes);
    await this.#file.flush();
    await this.#file.truncate(this.#free + Footer.size);
    this.#footerAt = this.#free;
  }
}
