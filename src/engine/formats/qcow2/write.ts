/** Writing guest clusters: where new data goes, and how it is linked in after it was written. */

import { ImageError } from '../../error.js';
import type { WriteTarget } from '../../node/driver.js';
import type { MaybePromise, Range, Storage } from '../../storage/storage.js';
import { later } from '../later.js';
import type { PackedReader } from '../packed-reader.js';
import { hex, type Image, type L2Table } from './image.js';
import {
  allocatedMask,
  clusterKind,
  countPlain,
  isCopied,
  Kind,
  maxPackedOffset,
  offsetAt,
  packedLength,
  packedOffset,
  setCluster,
  setClusterRun,
  setPacked,
  setSubclusters,
  zeroMask,
} from './layout.js';
import type { Refcounts } from './refcounts.js';
import { Freed } from './runtime.js';
import type { Tables } from './tables.js';

/** One target covers at most this many guest bytes. */
const MAX_TARGET = 8 << 20;
const ALL = 0xffff_ffff;

/** How a run of clusters is written. */
const Way = {
  /** Into its own host cluster, which nobody shares. */
  inPlace: 0,
  /** Into the host cluster that was reserved for it and that reads as zeros so far. */
  reserved: 1,
  /** Into a host cluster yet to be found. */
  fresh: 2,
} as const;
type Way = (typeof Way)[keyof typeof Way];

/** Bits [first, end) of a subcluster mask. */
function bits(first: number, end: number): number {
  const upTo = end >= 32 ? ALL : 2 ** end - 1;
  return (upTo & ~(2 ** first - 1)) >>> 0;
}

/** A run of guest clusters (by index) and the host clusters chosen for it. */
interface ClusterRun {
  readonly first: number;
  readonly count: number;
  /** Host offset. */
  readonly host: number;
  /** The host clusters were free until now. */
  readonly allocated: boolean;
}

/** Whole clusters to be linked. There is one for each write, so it is a class and not a handful of closures. */
class ClusterTarget implements WriteTarget {
  readonly storage: Storage;
  readonly at: number;
  readonly length: number;
  readonly fillBefore: number;
  readonly fillAfter: number;
  readonly #writer: Writer;
  readonly #run: ClusterRun;

  constructor(
    writer: Writer,
    storage: Storage,
    at: number,
    length: number,
    fillBefore: number,
    fillAfter: number,
    run: ClusterRun,
  ) {
    this.storage = storage;
    this.at = at;
    this.length = length;
    this.fillBefore = fillBefore;
    this.fillAfter = fillAfter;
    this.#writer = writer;
    this.#run = run;
  }

  commit(): MaybePromise<void> {
    const { first, count, host } = this.#run;
    return this.#writer.link(first, count, host, undefined);
  }

  abort(): MaybePromise<void> {
    const { host, count, allocated } = this.#run;
    return allocated ? this.#writer.giveBack(host, count) : undefined;
  }
}

export class Writer {
  readonly #image: Image;
  readonly #tables: Tables;
  readonly #refcounts: Refcounts;
  readonly #packed: PackedReader;
  /** Runs once before the first change of guest data. */
  #prepare: (() => Promise<void>) | undefined;
  #preparing: Promise<void> | undefined;
  /**
   * Guest clusters (by index) that a target is out for and that are written in part only: with subclusters, another writer
   * may come for the rest, and must see the host cluster that the first one has chosen.
   */
  readonly #partial = new Map<number, { done: Promise<void>; settle: () => void }>();

  constructor(
    image: Image,
    tables: Tables,
    refcounts: Refcounts,
    packed: PackedReader,
    prepare: (() => Promise<void>) | undefined,
  ) {
    this.#image = image;
    this.#tables = tables;
    this.#refcounts = refcounts;
    this.#packed = packed;
    this.#prepare = prepare;
  }

  /** What must be waited for before anything of the guest clusters [first, last] may be changed. */
  blocked(first: number, last: number): Promise<void> | undefined {
    if (this.#prepare !== undefined) {
      this.#preparing ??= this.#prepare().then(
        () => {
          this.#prepare = undefined;
        },
        (error) => {
          this.#preparing = undefined;
          throw error;
        },
      );
      return this.#preparing;
    }
    if (this.#partial.size > 0) {
      for (const [cluster, { done }] of this.#partial) if (cluster >= first && cluster <= last) return done;
    }
    return undefined;
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    const found = this.#attempt(range);
    return found instanceof Promise ? later(found, () => this.#attempt(range)) : found;
  }

  #attempt({ at, length }: Range): WriteTarget | Promise<void> {
    this.#image.checkAlive();
    const { geometry, data } = this.#image;
    const { clusterSize, l2Entries, l2Words, extendedL2 } = geometry;
    const end = at + Math.min(length, MAX_TARGET);
    const first = Math.floor(at / clusterSize);
    const wanted = Math.ceil(end / clusterSize) - first;
    const blocked = this.blocked(first, first + wanted - 1);
    if (blocked !== undefined) return blocked;

    // The run of clusters that can be written in one way, at host offsets that follow each other.
    let index = this.#tables.indexOf(at);
    let table = this.#tables.writable(index);
    if (table instanceof Promise) return table;
    let entry = first % l2Entries;
    const way = this.#wayOf(table, entry, first);
    const start = way === Way.fresh ? 0 : offsetAt(table.table, entry * l2Words);
    let count = 1;
    for (; count < wanted; count++) {
      if (way === Way.fresh && !extendedL2) {
        // The usual case fast: a stretch of entries with nothing in them.
        const plain = this.#plainFrom(table, entry, Math.min(wanted - count + 1, l2Entries - entry));
        if (plain > 1) {
          entry += plain - 1;
          count += plain - 1;
          if (count >= wanted) break;
        }
      }
      if (++entry === l2Entries) {
        entry = 0;
        index++;
        // Only new clusters are worth making a table for; the others end where the tables do.
        if (way !== Way.fresh && !this.#tables.has(index)) break;
        const next = this.#tables.writable(index);
        if (next instanceof Promise) break;
        table = next;
      }
      if (this.#wayOf(table, entry, first + count) !== way) break;
      if (way !== Way.fresh && offsetAt(table.table, entry * l2Words) !== start + count * clusterSize) break;
    }

    if (extendedL2 && index !== this.#tables.indexOf(at)) {
      // What is at the run's edges is looked up again below; bringing in the second table may have pushed out the first.
      const again = this.#tables.existing(this.#tables.indexOf(at));
      if (again instanceof Promise) return again;
    }
    let host = start;
    let allocated = false;
    if (way === Way.fresh) {
      if (geometry.externalData) host = first * clusterSize;
      else {
        const run = this.#refcounts.allocate(count);
        if (run instanceof Promise) return run;
        host = run.at;
        count = run.count;
        allocated = true;
      }
    } else if (!geometry.externalData) {
      this.#image.guardData(host, count * clusterSize);
    }

    const runStart = first * clusterSize;
    const stop = Math.min(end, runStart + count * clusterSize);
    const place = host + (at - runStart);
    if (extendedL2) {
      const target = { storage: data, at: place, length: stop - at };
      return this.#subclusterTarget(target, at, stop, way, allocated, host);
    }
    if (way === Way.inPlace) {
      return { storage: data, at: place, length: stop - at, fillBefore: 0, fillAfter: 0 };
    }
    const before = at - runStart;
    const after = runStart + count * clusterSize - stop;
    return new ClusterTarget(this, data, place, stop - at, before, after, { first, count, host, allocated });
  }

  /** How many entries from this one on, at least 0, are unallocated. */
  #plainFrom(table: L2Table, entry: number, most: number): number {
    const { geometry } = this.#image;
    const word = entry * geometry.l2Words;
    if (clusterKind(table.table, word, geometry) !== Kind.unallocated) return 0;
    return countPlain(table.table, word, most, Kind.unallocated, geometry);
  }

  #wayOf(table: L2Table, entry: number, guestCluster: number): Way {
    const { geometry } = this.#image;
    const words = table.table;
    const word = entry * geometry.l2Words;
    const kind = clusterKind(words, word, geometry);
    if (geometry.extendedL2 && kind === Kind.unallocated && allocatedMask(words, word) !== 0) {
      throw this.#invalidEntry(table, entry);
    }
    if ((kind !== Kind.normal && kind !== Kind.zeroAlloc) || !isCopied(words, word)) return Way.fresh;
    const at = offsetAt(words, word);
    const guest = guestCluster * geometry.clusterSize;
    if (at % geometry.clusterSize !== 0 || !Number.isSafeInteger(at + geometry.clusterSize)) {
      const what = kind === Kind.normal ? 'Data cluster' : 'Preallocated zero cluster';
      throw this.#image.corrupt(`${what} offset ${hex(at)} unaligned (guest offset: ${hex(guest)})`);
    }
    if (geometry.extendedL2 && (allocatedMask(words, word) & zeroMask(words, word)) !== 0) {
      throw this.#invalidEntry(table, entry);
    }
    if (geometry.externalData && at !== guest) {
      throw this.#image.corrupt(
        `External data file host cluster offset ${hex(at)} does not match guest cluster offset: ${hex(guest)}, L2 index: ${hex(entry)})`,
      );
    }
    return kind === Kind.normal ? Way.inPlace : Way.reserved;
  }

  #invalidEntry(table: L2Table, entry: number): ImageError {
    const where = `(L2 offset: ${hex(table.at)}, L2 index: ${hex(entry)})`;
    return this.#image.corrupt(`Invalid cluster entry found ${where}`);
  }

  /** With subclusters the bytes around the written ones are filled up to subclusters only, where the rest may stay as it is. */
  #subclusterTarget(
    target: { storage: WriteTarget['storage']; at: number; length: number },
    at: number,
    stop: number,
    way: Way,
    allocated: boolean,
    host: number,
  ): WriteTarget {
    const { clusterSize, subclusterSize } = this.#image.geometry;
    const first = Math.floor(at / clusterSize);
    const count = Math.ceil(stop / clusterSize) - first;
    const last = first + count - 1;
    const edge = (cluster: number) => this.#edge(cluster, way);
    const head = edge(first);
    const tail = count === 1 ? head : edge(last);

    // Bits that are there already need no filling; a shared or compressed cluster is copied whole.
    const subOf = (byte: number) => Math.floor((byte % clusterSize) / subclusterSize);
    const isSet = (mask: number, sub: number) => ((mask >>> sub) & 1) !== 0;
    let from = at;
    if (head.copyAll) from = first * clusterSize;
    else if (!isSet(head.present, subOf(at))) from = at - (at % subclusterSize);
    let to = stop;
    if (tail.copyAll) to = (last + 1) * clusterSize;
    else if (stop % subclusterSize !== 0 && !isSet(tail.present, subOf(stop - 1))) {
      to = Math.ceil(stop / subclusterSize) * subclusterSize;
    }
    const fills = { fillBefore: at - from, fillAfter: to - stop };

    const written = { from, to };
    const firstBits = bits(subOf(from), count === 1 ? subOf(to - 1) + 1 : 32);
    const nothingNew = way === Way.inPlace && count === 1 && (head.present & firstBits) >>> 0 === firstBits;
    if (nothingNew) return { ...target, ...fills };

    const held: number[] = [];
    if (way === Way.fresh) {
      // Also where the rest of the cluster is copied along: only what is written is locked against others.
      if (at > first * clusterSize || stop < (first + 1) * clusterSize) held.push(first);
      if (stop < (last + 1) * clusterSize && count > 1) held.push(last);
      for (const cluster of held) this.#hold(cluster);
    }
    const release = () => {
      for (const cluster of held) this.#letGo(cluster);
    };
    const commit = async () => {
      try {
        await this.link(first, count, host, written);
      } finally {
        release();
      }
    };
    return {
      ...target,
      ...fills,
      commit,
      abort: () => {
        release();
        return allocated ? this.giveBack(host, count) : undefined;
      },
    };
  }

  /** What is in a guest cluster before it is written: its subclusters with data, and whether all of it must be copied. */
  #edge(cluster: number, way: Way): { present: number; copyAll: boolean } {
    const { geometry } = this.#image;
    const table = this.#tables.existing(Math.floor(cluster / geometry.l2Entries)) as L2Table;
    const word = (cluster % geometry.l2Entries) * geometry.l2Words;
    if (way !== Way.fresh) return { present: allocatedMask(table.table, word), copyAll: false };
    return { present: 0, copyAll: clusterKind(table.table, word, geometry) !== Kind.unallocated };
  }

  #hold(cluster: number): void {
    let settle = () => {};
    const done = new Promise<void>((resolve) => {
      settle = resolve;
    });
    this.#partial.set(cluster, { done, settle });
  }

  #letGo(cluster: number): void {
    const held = this.#partial.get(cluster);
    this.#partial.delete(cluster);
    held?.settle();
  }

  giveBack(host: number, count: number): Promise<void> {
    return this.#refcounts.release(host / this.#image.geometry.clusterSize, count);
  }

  /** Links host clusters into the L2 tables; `written` tells which guest bytes are there, with subclusters. */
  link(
    first: number,
    count: number,
    host: number,
    written: { readonly from: number; readonly to: number } | undefined,
    from = 0,
  ): MaybePromise<void> {
    const { geometry } = this.#image;
    const { clusterSize, l2Entries } = geometry;
    for (let linked = from; linked < count; ) {
      const table = this.#tables.writable(Math.floor((first + linked) / l2Entries));
      if (table instanceof Promise) {
        return table.then(() => this.link(first, count, host, written, linked));
      }
      const entry = (first + linked) % l2Entries;
      const here = Math.min(count - linked, l2Entries - entry);
      // The usual case fast, as above.
      const plain = written === undefined ? this.#plainFrom(table, entry, here) : 0;
      if (plain > 0) {
        const at = host + linked * clusterSize;
        setClusterRun(table.table, entry * geometry.l2Words, plain, at, geometry);
      }
      for (let i = plain; i < here; i++) {
        this.#linkOne(table, entry + i, host + (linked + i) * clusterSize, first + linked + i, written);
      }
      this.#tables.changed(table, entry, here);
      linked += here;
    }
  }

  #linkOne(
    table: L2Table,
    entry: number,
    host: number,
    cluster: number,
    written: { readonly from: number; readonly to: number } | undefined,
  ): void {
    const { geometry } = this.#image;
    const word = entry * geometry.l2Words;
    const words = table.table;
    if (written === undefined) {
      this.freeOld(words, word, host);
      setCluster(words, word, host);
      return;
    }
    const start = cluster * geometry.clusterSize;
    const sub = (byte: number) => Math.floor((byte - start) / geometry.subclusterSize);
    const added = bits(
      Math.max(0, sub(written.from)),
      Math.min(32, Math.ceil((written.to - start) / geometry.subclusterSize)),
    );
    const compressed = clusterKind(words, word, geometry) === Kind.compressed;
    const allocated = compressed ? 0 : allocatedMask(words, word);
    const zeros = compressed ? 0 : zeroMask(words, word);
    this.freeOld(words, word, host);
    setCluster(words, word, host);
    setSubclusters(words, word, allocated | added, zeros & ~added);
  }

  /** Notes what an entry refers to as no longer in use by it, unless it is `keep`. */
  freeOld(words: Uint32Array, word: number, keep?: number, why: Freed = Freed.other): void {
    const { geometry } = this.#image;
    const kind = clusterKind(words, word, geometry);
    if (kind === Kind.compressed) {
      this.#packed.forget();
      const at = packedOffset(words, word, geometry);
      this.#refcounts.deferFree(at, packedLength(words, word, geometry), why);
    } else if ((kind === Kind.normal || kind === Kind.zeroAlloc) && !geometry.externalData) {
      const at = offsetAt(words, word);
      if (at !== keep && at % geometry.clusterSize === 0)
        this.#refcounts.deferFree(at, geometry.clusterSize, why);
    }
  }

  /** Stores one compressed cluster. */
  async writePacked(at: number, packed: Uint8Array): Promise<void> {
    const { geometry, file } = this.#image;
    const cluster = at / geometry.clusterSize;
    this.#image.checkAlive();
    for (;;) {
      // The table first, as for other writes: a new image is laid out in the reference's order.
      const wait = this.blocked(cluster, cluster) ?? this.#tables.writable(this.#tables.indexOf(at));
      if (!(wait instanceof Promise)) break;
      await wait;
    }
    let place = this.#refcounts.allocateBytes(packed.byteLength);
    while (place instanceof Promise) {
      await place;
      place = this.#refcounts.allocateBytes(packed.byteLength);
    }
    const host = place.at;
    try {
      if (host + packed.byteLength > maxPackedOffset(geometry)) {
        throw new ImageError('no-space', 'File too large', { errno: 'EFBIG', path: file.filename });
      }
      await file.write(host, packed);
    } catch (error) {
      const firstHost = Math.floor(host / geometry.clusterSize);
      const lastHost = Math.floor((host + packed.byteLength - 1) / geometry.clusterSize);
      await this.#refcounts.release(firstHost, lastHost - firstHost + 1);
      throw error;
    }
    for (;;) {
      const table = this.#tables.writable(this.#tables.indexOf(at));
      if (table instanceof Promise) {
        await table;
        continue;
      }
      const entry = cluster % geometry.l2Entries;
      const word = entry * geometry.l2Words;
      this.freeOld(table.table, word);
      setPacked(table.table, word, host, packed.byteLength, geometry);
      this.#tables.changed(table, entry, 1);
      return;
    }
  }
}
