/** The clusters of the data area: which are free for new data. By index, from the start of the area. */
import { errnoText, ImageError } from '../../error.js';
import { SparseBits } from '../entry-table.js';
import type { ParallelsImage } from './image.js';
import { SECTOR } from './layout.js';

/** Files of more clusters than this get new ones at their end only: what is used is not kept track of. */
const MAX_TRACKED = 2 ** 28;

/** What a look through the BAT has found. */
export interface Layout {
  /** Byte offset after the last cluster of the BAT. */
  readonly dataEnd: number;
  /** Entries that cannot be: two at one place. */
  readonly overlaps: boolean;
}

export class Clusters {
  readonly #image: ParallelsImage;
  /** Byte offset of cluster 0: of images with MAGIC_EXT a multiple of the cluster size, whatever the header says. */
  readonly #base: number;
  #used: SparseBits | undefined;
  /** From this cluster on nothing was ever written. */
  #fresh: number;
  #searchFrom = 0;
  /** Freed, but the BAT on the disk may still point there. */
  #freed: number[] = [];

  constructor(image: ParallelsImage) {
    const { clusterSize, isExt } = image;
    this.#image = image;
    const least = Math.max(image.dataStart, Math.ceil(image.metadataEnd / SECTOR) * SECTOR);
    this.#base = isExt ? Math.ceil(least / clusterSize) * clusterSize : least;
    this.#fresh = Math.max(0, Math.ceil((image.file.size - this.#base) / clusterSize));
    if (this.#fresh <= MAX_TRACKED) this.#used = new SparseBits();
    else this.#searchFrom = this.#fresh;
  }

  /** Looks through the BAT, once. */
  async scan(): Promise<Layout> {
    const { bat, clusterSize } = this.#image;
    let dataEnd = this.#image.dataStart;
    let overlaps = false;
    await bat.scan((entries, _first, count) => {
      for (let i = 0; i < count; i++) {
        const entry = entries[i]!;
        if (entry === 0) continue;
        const place = this.#image.placeOf(entry);
        if (place + clusterSize > dataEnd) dataEnd = place + clusterSize;
        const from = (place - this.#base) / clusterSize;
        if (from < 0) continue;
        const first = Math.floor(from);
        if (first >= this.#fresh) continue;
        if (this.#used?.add(first) === false) overlaps = true;
        // One that stands across two.
        if (first !== from) this.#used?.add(first + 1);
      }
    });
    return { dataEnd, overlaps };
  }

  place(index: number): number {
    return this.#base + index * this.#image.clusterSize;
  }

  /** The BAT entry for a cluster. */
  entry(index: number): number {
    return this.place(index) / this.#image.entryUnit;
  }

  /** BAT entries of neighbours differ by this. */
  get step(): number {
    return this.#image.clusterSize / this.#image.entryUnit;
  }

  /** A run of up to `wanted` clusters; `stale`: there may be old bytes in them. */
  take(wanted: number): { first: number; count: number; stale: boolean } {
    const used = this.#used;
    const first =
      used === undefined ? Math.max(this.#searchFrom, this.#fresh) : used.firstAbsent(this.#searchFrom);
    const stale = first < this.#fresh;
    let count = 1;
    while (count < wanted && first + count < this.#fresh === stale && used?.has(first + count) !== true)
      count++;
    if (this.entry(first + count - 1) > 0xffff_ffff) {
      throw new ImageError('no-space', errnoText('EFBIG'), {
        path: this.#image.file.filename,
        errno: 'EFBIG',
      });
    }
    for (let i = 0; i < count; i++) used?.add(first + i);
    this.#searchFrom = first + count;
    this.#fresh = Math.max(this.#fresh, first + count);
    return { first, count, stale };
  }

  /** They may be given out again at once: nothing points there. */
  giveBack(first: number, count: number): void {
    for (let i = 0; i < count; i++) this.#used?.delete(first + i);
    if (this.#used !== undefined) this.#searchFrom = Math.min(this.#searchFrom, first);
  }

  /** Nothing in the BAT in memory points to the cluster at byte `place` any more. */
  free(place: number): void {
    const index = (place - this.#base) / this.#image.clusterSize;
    if (Number.isInteger(index) && index >= 0) this.#freed.push(index);
  }

  get hasFreed(): boolean {
    return this.#freed.length > 0;
  }

  /** The BAT on the disk does not point to them either: their host space goes, and they may be used again. */
  async release(): Promise<void> {
    const freed = this.#freed;
    this.#freed = [];
    const { file, clusterSize } = this.#image;
    for (const index of freed) {
      const at = this.place(index);
      if (at < file.size) await file.discard({ at, length: Math.min(clusterSize, file.size - at) });
      this.giveBack(index, 1);
    }
  }
}
