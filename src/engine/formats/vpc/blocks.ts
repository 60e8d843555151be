/** Where guest bytes of a dynamic or differencing disk are: "Mapping a Disk Sector to a Sector in the Block". */
import { ImageError } from '../../error.js';
import type { Extent } from '../../node/driver.js';
import type { MaybePromise, Range, Storage } from '../../storage/storage.js';
import { PAGE_ENTRIES } from '../entry-table.js';
import { SECTOR, UNUSED } from './layout.js';
import type { Blocks } from './open.js';

/** Bitmaps of a differencing disk that are kept, in bytes; never less than a few. */
const BITMAP_CACHE_BYTES = 4 * 1024 * 1024;
const MIN_BITMAPS = 4;

export class BlockMap {
  readonly #file: Storage;
  readonly #blocks: Blocks;
  readonly #differencing: boolean;
  /** By block, oldest first. */
  readonly #bitmaps = new Map<number, Uint8Array>();
  readonly #maxBitmaps: number;

  constructor(file: Storage, blocks: Blocks, differencing: boolean) {
    this.#file = file;
    this.#blocks = blocks;
    this.#differencing = differencing;
    this.#maxBitmaps = Math.max(MIN_BITMAPS, Math.floor(BITMAP_CACHE_BYTES / blocks.bitmapSize));
  }

  map(range: Range): MaybePromise<Extent> {
    const block = Math.floor(range.at / this.#blocks.blockSize);
    const page = this.#blocks.table.page(block);
    if (page !== undefined) return this.#mapIn(page, block, range);
    return this.#blocks.table.load(block).then((loaded) => this.#mapIn(loaded, block, range));
  }

  #mapIn(page: Uint32Array, block: number, range: Range): MaybePromise<Extent> {
    const { blockSize, bitmapSize } = this.#blocks;
    const entry = page[block % PAGE_ENTRIES]!;
    if (entry === UNUSED) {
      const length = this.unusedRun(page, block, range);
      return this.#differencing ? { kind: 'backing', length } : { kind: 'zero', length };
    }
    const within = range.at - block * blockSize;
    const length = Math.min(range.length, blockSize - within);
    // Of dynamic disks the bitmap is of no interest: sectors that were never written hold zeros.
    if (!this.#differencing || bitmapSize === 0)
      return this.#data(entry * SECTOR + bitmapSize + within, length);
    const bitmap = this.#bitmaps.get(block);
    if (bitmap !== undefined) return this.#sectors(bitmap, entry, within, length);
    return this.#loadBitmap(block, entry).then((loaded) => this.#sectors(loaded, entry, within, length));
  }

  #data(at: number, length: number): Extent {
    return { kind: 'data', length, storage: this.#file, at };
  }

  /** Bytes from the start of the range on in blocks that are not there, as far as the table's pages are at hand. */
  unusedRun(page: Uint32Array, block: number, range: Range): number {
    const { blockSize, table } = this.#blocks;
    const last = Math.floor((range.at + range.length - 1) / blockSize);
    let next = block + 1;
    let entries: Uint32Array | undefined = page;
    while (next <= last) {
      if (next % PAGE_ENTRIES === 0) entries = table.page(next);
      if (entries === undefined || entries[next % PAGE_ENTRIES] !== UNUSED) break;
      next++;
    }
    return Math.min(range.length, next * blockSize - range.at);
  }

  async #loadBitmap(block: number, entry: number): Promise<Uint8Array> {
    const bitmap = new Uint8Array(this.#blocks.bitmapSize);
    await this.#file.read(entry * SECTOR, bitmap);
    for (const [oldest] of this.#bitmaps) {
      if (this.#bitmaps.size < this.#maxBitmaps) break;
      this.#bitmaps.delete(oldest);
    }
    this.#bitmaps.set(block, bitmap);
    return bitmap;
  }

  /** The run of sectors that are all here (1) or all in the parent (0). The first sector is a byte's highest bit. */
  #sectors(bitmap: Uint8Array, entry: number, within: number, length: number): Extent {
    const bit = (sector: number) => (bitmap[sector >>> 3]! >>> (7 - (sector & 7))) & 1;
    const first = Math.floor(within / SECTOR);
    const end = Math.ceil((within + length) / SECTOR);
    const here = bit(first);
    const whole = here === 1 ? 0xff : 0;
    let next = first + 1;
    while (next < end) {
      if ((next & 7) === 0 && bitmap[next >>> 3] === whole) next += 8;
      else if (bit(next) === here) next++;
      else break;
    }
    const run = Math.min(length, next * SECTOR - within);
    if (here === 0) return { kind: 'backing', length: run };
    return this.#data(entry * SECTOR + this.#blocks.bitmapSize + within, run);
  }

  /** Entries must not lead writers into header and table. */
  checkWritable(block: number, entry: number): void {
    if (entry * SECTOR < this.#blocks.metadataEnd) {
      throw new ImageError('corrupt', 'Input/output error', {
        path: this.#file.filename,
        offset: entry * SECTOR,
        errno: 'EIO',
        check: `block-${block}-in-metadata`,
      });
    }
  }
}
