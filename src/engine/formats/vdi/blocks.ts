/** The file's blocks: which are free for new data. */

import { ImageError } from '../../error.js';
import { type EntryTable, SparseBits } from '../entry-table.js';
import type { VdiImage } from './header.js';
import { DISCARDED } from './layout.js';

/**
 * Gives out blocks one after the other, as the header counts them. Where it counts less than are used (another program's
 * crash), nothing of theirs is overwritten; where blocks were lost, they are found again once there are no others.
 */
export class Blocks {
  readonly #image: VdiImage;
  readonly #table: EntryTable;
  /** The next block that was never used; undefined until the map was looked through. */
  #next: number | undefined;
  /** Blocks that a failed write gave back. */
  readonly #returned: number[] = [];
  /** What is used, once there are no blocks at the end any more: all others may be taken. */
  #used: SparseBits | undefined;
  #searchFrom = 0;
  /** Blocks that are out for a write and not in the map yet. */
  readonly #pending = new Set<number>();
  #preparing: Promise<void> | undefined;
  /** As it is to be in the header. */
  allocated: number;
  headerDirty = false;

  constructor(image: VdiImage, table: EntryTable) {
    this.#image = image;
    this.#table = table;
    this.allocated = image.blocksAllocated;
  }

  async #lookThrough(): Promise<void> {
    let next = Math.min(this.allocated, this.#image.blocks);
    await this.#table.scan((entries, _first, count) => {
      for (let i = 0; i < count; i++) {
        const entry = entries[i]!;
        if (entry >= next && entry < DISCARDED && entry < this.#image.blocks) next = entry + 1;
      }
    });
    this.#next = next;
  }

  async #findUsed(): Promise<void> {
    const used = new SparseBits();
    await this.#table.scan((entries, _first, count) => {
      for (let i = 0; i < count; i++) if (entries[i]! < DISCARDED) used.add(entries[i]!);
    });
    for (const block of this.#pending) used.add(block);
    this.#used = used;
  }

  /** A run of up to `wanted` blocks, or a promise after which to ask again. */
  take(wanted: number): { first: number; count: number } | Promise<void> {
    if (this.#next === undefined) {
      this.#preparing ??= this.#lookThrough().finally(() => {
        this.#preparing = undefined;
      });
      return this.#preparing;
    }
    const returned = this.#returned.pop();
    if (returned !== undefined) return this.#given(returned, 1);
    const { blocks } = this.#image;
    if (this.#next < blocks) {
      const first = this.#next;
      const count = Math.min(wanted, blocks - first);
      this.#next += count;
      if (this.#next > this.allocated) {
        this.allocated = this.#next;
        this.headerDirty = true;
      }
      return this.#given(first, count);
    }
    if (this.#used === undefined) {
      this.#preparing ??= this.#findUsed().finally(() => {
        this.#preparing = undefined;
      });
      return this.#preparing;
    }
    const first = this.#used.firstAbsent(this.#searchFrom);
    if (first >= blocks) {
      throw new ImageError('corrupt', 'Input/output error', {
        path: this.#image.file.filename,
        errno: 'EIO',
      });
    }
    this.#used.add(first);
    this.#searchFrom = first + 1;
    return this.#given(first, 1);
  }

  #given(first: number, count: number): { first: number; count: number } {
    for (let i = 0; i < count; i++) this.#pending.add(first + i);
    return { first, count };
  }

  /** They are in the map now. */
  linked(first: number, count: number): void {
    for (let i = 0; i < count; i++) this.#pending.delete(first + i);
  }

  /** They could not be written. */
  giveBack(first: number, count: number): void {
    for (let i = count - 1; i >= 0; i--) {
      this.#pending.delete(first + i);
      this.#returned.push(first + i);
    }
  }
}
