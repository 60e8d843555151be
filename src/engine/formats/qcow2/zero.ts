/** Zeroing and discarding whole clusters (and subclusters) by metadata alone. */
import type { Range } from '../../storage/storage.js';
import type { Image, L2Table } from './image.js';
import {
  Autoclear,
  allocatedMask,
  clearCluster,
  clusterKind,
  isCopied,
  Kind,
  offsetAt,
  setCluster,
  setSubclusters,
  zeroMask,
} from './layout.js';
import { Freed } from './runtime.js';
import type { Tables } from './tables.js';
import type { Writer } from './write.js';

const ALL = 0xffff_ffff;

/** How a discarded cluster reads afterwards. */
export type Discard =
  /** As the format can: zeros where it has a zero flag. */
  | 'guest'
  /** Not allocated at all: beyond the end of a shrunk image. */
  | 'full';

function noteDropped(dropped: Range[], at: number, length: number): void {
  const previous = dropped.at(-1);
  if (previous !== undefined && previous.at + previous.length === at) {
    dropped[dropped.length - 1] = { at: previous.at, length: previous.length + length };
  } else dropped.push({ at, length });
}

export class Zeroer {
  readonly #image: Image;
  readonly #tables: Tables;
  readonly #writer: Writer;

  constructor(image: Image, tables: Tables, writer: Writer) {
    this.#image = image;
    this.#tables = tables;
    this.#writer = writer;
  }

  /** True where the guest reads zeros in the range now; false where the image cannot say so without data. */
  async zero(range: Range, unmap: boolean): Promise<boolean> {
    const { header, dataFile } = this.#image;
    if (await this.#cutsCompressed(range)) return false;
    if (header.version < 3) {
      // Version 2 has no zero flag: only what nothing lies below can be let go.
      if (header.backing !== undefined || dataFile !== undefined) return false;
      await this.discard(range, 'guest');
      return true;
    }
    if (dataFile !== undefined && (header.autoclear & Autoclear.dataFileRaw) !== 0n) {
      // The data file must read the same by itself.
      await dataFile.zero(range, { unmap });
    }
    const { clusterSize, l2Entries } = this.#image.geometry;
    const dropped: Range[] = [];
    await this.#each(range, (table, entry, cluster) => {
      const start = (cluster * l2Entries + entry) * clusterSize;
      this.#zeroEntry(table, entry, this.#subclusters(range, start), unmap, dropped);
    });
    await this.#drop(dropped);
    return true;
  }

  /** Gives host clusters back. Parts of clusters at the edges (with subclusters) stay. */
  async discard(range: Range, how: Discard): Promise<void> {
    const { geometry, header, data, dataFile, runtime } = this.#image;
    const { clusterSize, l2Words } = geometry;
    const first = Math.ceil(range.at / clusterSize) * clusterSize;
    const end = range.at + range.length;
    const last =
      end >= this.#image.size ? Math.ceil(end / clusterSize) * clusterSize : end - (end % clusterSize);
    if (first >= last) return;
    const hasBacking = header.backing !== undefined;
    // Without a zero flag the backing file's bytes would come back: a discard is a hint, and it is not taken.
    if (how === 'guest' && hasBacking && header.version < 3) return;
    const raw = (header.autoclear & Autoclear.dataFileRaw) !== 0n;
    const dropped: Range[] = [];
    await this.#each(
      { at: first, length: last - first },
      (table, entry) => {
        const words = table.table;
        const word = entry * l2Words;
        const kind = clusterKind(words, word, geometry);
        const nothing = kind === Kind.unallocated && (!geometry.extendedL2 || zeroMask(words, word) === 0);
        if (how === 'guest') {
          if (nothing && !hasBacking) return;
          if (kind === Kind.zeroPlain) return;
          if (geometry.extendedL2 && kind === Kind.unallocated && zeroMask(words, word) === ALL) return;
        } else if (nothing) return;
        const hasHost = kind === Kind.normal || kind === Kind.zeroAlloc;
        if (how === 'guest' && hasHost && runtime.discardNoUnref) {
          this.#keepPlace(words, word, dropped);
        } else {
          if (dataFile !== undefined && hasHost && !raw)
            noteDropped(dropped, offsetAt(words, word), clusterSize);
          this.#writer.freeOld(words, word, undefined, Freed.request);
          clearCluster(words, word, how === 'guest' && header.version >= 3, geometry);
        }
        this.#tables.changed(table, entry, 1);
      },
      // Tables are not made only to say "not allocated" in them.
      how === 'full' || !hasBacking,
    );
    // A raw data file must read the same by itself.
    if (raw) await data.zero({ at: first, length: last - first }, { unmap: true });
    await this.#drop(dropped);
  }

  /** The entry reads as zeros and its host cluster stays its own; the space is given back where no snapshot has it, too. */
  #keepPlace(words: Uint32Array, word: number, dropped: Range[]): void {
    const { geometry } = this.#image;
    const at = offsetAt(words, word);
    const alone = geometry.externalData || isCopied(words, word);
    if (alone) noteDropped(dropped, at, geometry.clusterSize);
    setCluster(words, word, at, !geometry.extendedL2, alone);
    if (geometry.extendedL2) setSubclusters(words, word, 0, ALL);
  }

  /** Gives host space back of which no entry says any more that there is data. The guest range is still locked. */
  async #drop(dropped: readonly Range[]): Promise<void> {
    const { data, runtime, writeback } = this.#image;
    if (dropped.length === 0 || !runtime.passDiscard[Freed.request]) return;
    // Not before that is on the disk.
    await writeback.run();
    for (const run of dropped) await data.discard(run).catch(() => {});
  }

  /** The mask of the subclusters of the cluster at guest offset `start` that the range covers. */
  #subclusters(range: Range, start: number): number {
    const { clusterSize, subclusterSize, extendedL2 } = this.#image.geometry;
    if (!extendedL2) return ALL;
    const from = Math.max(0, Math.ceil((range.at - start) / subclusterSize));
    const end = Math.min(start + clusterSize, range.at + range.length);
    // The end of the image counts as the end of its last subcluster.
    const to = Math.min(32, Math.ceil((end - start) / subclusterSize));
    return ((to >= 32 ? ALL : 2 ** to - 1) & ~(2 ** from - 1)) >>> 0;
  }

  #zeroEntry(table: L2Table, entry: number, mask: number, unmap: boolean, dropped: Range[]): void {
    const { geometry } = this.#image;
    const words = table.table;
    const word = entry * geometry.l2Words;
    const kind = clusterKind(words, word, geometry);
    if (mask !== ALL) {
      this.#zeroSubclusters(table, entry, mask);
      return;
    }
    const hasHost = kind === Kind.normal || kind === Kind.zeroAlloc;
    if (kind === Kind.zeroPlain || (kind === Kind.zeroAlloc && !unmap)) return;
    if (hasHost && !unmap && (isCopied(words, word) || geometry.externalData)) {
      // The host cluster stays reserved for the data that may come.
      setCluster(words, word, offsetAt(words, word), !geometry.extendedL2);
      if (geometry.extendedL2) setSubclusters(words, word, 0, ALL);
    } else if (hasHost && this.#image.runtime.discardNoUnref) {
      this.#keepPlace(words, word, dropped);
    } else {
      this.#writer.freeOld(words, word, undefined, Freed.request);
      clearCluster(words, word, true, geometry);
    }
    this.#tables.changed(table, entry, 1);
  }

  /** Some subclusters of a cluster; compressed ones are unpacked by the access path's writing of zeros instead. */
  #zeroSubclusters(table: L2Table, entry: number, mask: number): void {
    const { geometry } = this.#image;
    const words = table.table;
    const word = entry * geometry.l2Words;
    setSubclusters(words, word, allocatedMask(words, word) & ~mask, zeroMask(words, word) | mask);
    this.#tables.changed(table, entry, 1);
  }

  /**
   * Calls `change` for every entry of the range's clusters, tables by L1 index, all in turns in which they may be
   * changed. `onlyExisting`: ranges without a table are passed over.
   */
  async #each(
    range: Range,
    change: (table: L2Table, entry: number, index: number) => void,
    onlyExisting = false,
  ): Promise<void> {
    const { clusterSize, l2Entries, l2Span } = this.#image.geometry;
    const end = Math.ceil((range.at + range.length) / clusterSize);
    for (let cluster = Math.floor(range.at / clusterSize); cluster < end; ) {
      this.#image.checkAlive();
      const index = this.#tables.indexOf(cluster * clusterSize);
      const stop = Math.min(end, ((index + 1) * l2Span) / clusterSize);
      if (onlyExisting && !this.#tables.has(index)) {
        cluster = stop;
        continue;
      }
      const table = this.#writer.blocked(cluster, stop - 1) ?? this.#tables.writable(index);
      if (table instanceof Promise) {
        await table;
        continue;
      }
      for (; cluster < stop; cluster++) change(table, cluster % l2Entries, index);
    }
  }

  /** True where a range cuts through a compressed cluster: subclusters of one cannot be zeroed alone. */
  async #cutsCompressed(range: Range): Promise<boolean> {
    const { geometry } = this.#image;
    const { clusterSize, l2Entries, l2Words, extendedL2 } = geometry;
    if (!extendedL2) return false;
    const end = Math.min(range.at + range.length, this.#image.size);
    const edges = [range.at, end].filter((at) => at % clusterSize !== 0 && at !== this.#image.size);
    for (const at of edges) {
      for (;;) {
        const table = this.#tables.existing(this.#tables.indexOf(at));
        if (table instanceof Promise) {
          await table;
          continue;
        }
        if (table === undefined) break;
        const word = (Math.floor(at / clusterSize) % l2Entries) * l2Words;
        const kind = clusterKind(table.table, word, geometry);
        if (kind === Kind.compressed) return true;
        break;
      }
    }
    return false;
  }
}
