/** Where guest bytes are: the walk over L1 and L2 tables. */
import type { Extent } from '../../node/driver.js';
import type { MaybePromise, Range } from '../../storage/storage.js';
import { later } from '../later.js';
import type { PackedReader } from '../packed-reader.js';
import { hex, type Image, type L2Table } from './image.js';
import {
  clusterKind,
  countContiguous,
  countPlain,
  Kind,
  l1Offset,
  offsetAt,
  packedLength,
  packedOffset,
  SUBCLUSTERS,
  subclusterKind,
} from './layout.js';

/** Bytes of L2 tables that a sequential walk reads ahead. */
const READ_AHEAD_BYTES = 512 << 10;
const READ_AHEAD_TABLES = 32;

/** A view of the guest through one L1 table: the active one, or a snapshot's. */
/** Of a subcluster: not allocated, but its cluster has a place in the file. */
const RESERVED = 6;
type MapKind = Kind | typeof RESERVED;

export class Mapping {
  readonly #image: Image;
  readonly #packed: PackedReader;
  readonly #l1: () => Uint32Array;
  #lastMiss = -1;

  constructor(image: Image, packed: PackedReader, l1: () => Uint32Array) {
    this.#image = image;
    this.#packed = packed;
    this.#l1 = l1;
  }

  /** The first extent of the range; merged over clusters and over tables that are in memory. */
  map(range: Range): MaybePromise<Extent> {
    const found = this.#attempt(range);
    return found instanceof Promise ? later(found, () => this.#attempt(range)) : found;
  }

  /** The L2 table of an L1 entry: 0 where there is none, a promise where it is not in memory. */
  #table(l1: Uint32Array, index: number): L2Table | 0 | Promise<void> {
    const at = index * 2 < l1.length ? l1Offset(l1, index) : 0;
    if (at === 0) return 0;
    const { l2, geometry } = this.#image;
    const found = l2.peek(at);
    if (found !== undefined) return found;
    if (at % geometry.clusterSize !== 0 || !Number.isSafeInteger(at)) {
      throw this.#image.corrupt(`L2 table offset ${hex(at)} unaligned (L1 index: ${hex(index)})`);
    }
    const loading = l2.load(at);
    if (index === this.#lastMiss + 1) this.#readAhead(l1, index + 1);
    else this.#lastMiss = index;
    return loading;
  }

  /** Starts to read the tables that a sequential walk will want next. */
  #readAhead(l1: Uint32Array, from: number): void {
    const { clusterSize } = this.#image.geometry;
    const count = Math.min(READ_AHEAD_TABLES, Math.max(1, Math.floor(READ_AHEAD_BYTES / clusterSize)));
    const end = Math.min(from + count, l1.length / 2);
    for (let index = from; index < end; index++) {
      const at = l1Offset(l1, index);
      if (at === 0 || at % clusterSize !== 0 || !Number.isSafeInteger(at)) continue;
      // Whoever needs the table will ask again and get the error then.
      if (this.#image.l2.peek(at) === undefined) this.#image.l2.load(at).catch(() => {});
    }
    this.#lastMiss = end - 1;
  }

  #attempt({ at, length }: Range): Extent | Promise<void> {
    const { geometry, data } = this.#image;
    const { clusterSize, l2Span, l2Words } = geometry;
    const l1 = this.#l1();
    const end = at + length;
    let kind: MapKind | undefined;
    /** Host offset of the byte `at`, where the kind has one, and of the byte `position`. */
    let host = 0;
    let position = at;
    while (position < end) {
      const index = Math.floor(position / l2Span);
      const tableStart = index * l2Span;
      const table = this.#table(l1, index);
      if (table instanceof Promise) {
        if (kind !== undefined) break;
        return table;
      }
      if (table === 0) {
        if (kind !== undefined && kind !== Kind.unallocated) break;
        kind = Kind.unallocated;
        position = Math.min(end, tableStart + l2Span);
        continue;
      }
      const words = table.table;
      const tableEnd = Math.min(end, tableStart + l2Span);
      while (position < tableEnd) {
        const entry = Math.floor((position - tableStart) / clusterSize);
        const word = entry * l2Words;
        const clusterStart = tableStart + entry * clusterSize;
        const whole = clusterKind(words, word, geometry);
        if (whole === Kind.compressed) {
          if (kind !== undefined) return this.#extent(kind, position - at, host);
          return this.#compressed(table, word, { at: position, length: end - position }, clusterStart);
        }
        const sub = geometry.extendedL2 ? Math.floor((position - clusterStart) / geometry.subclusterSize) : 0;
        const stored = geometry.extendedL2 ? subclusterKind(words, word, whole, sub) : whole;
        const found = stored === Kind.unallocated && whole === Kind.normal ? RESERVED : stored;
        if (kind !== undefined && found !== kind) return this.#extent(kind, position - at, host);
        const hasHost = found === Kind.normal || found === Kind.zeroAlloc || found === RESERVED;
        if (hasHost) {
          const there = offsetAt(words, word) + (position - clusterStart);
          if (kind === undefined) {
            this.#checkOffset(offsetAt(words, word), clusterStart, table.at, entry);
            host = there;
          } else if (there !== host + (position - at)) {
            return this.#extent(kind, position - at, host);
          }
        } else if (found === Kind.invalid) {
          const where = `(L2 offset: ${hex(table.at)}, L2 index: ${hex(entry)})`;
          throw this.#image.corrupt(`Invalid cluster entry found  ${where}`);
        }
        kind = found;
        if (geometry.extendedL2) {
          position =
            clusterStart + this.#subclusterRun(words, word, whole, sub, stored) * geometry.subclusterSize;
        } else {
          const most = Math.ceil((tableEnd - clusterStart) / clusterSize);
          const count = hasHost
            ? countContiguous(words, word, most, geometry, false)
            : countPlain(words, word, most, stored, geometry);
          position = clusterStart + count * clusterSize;
        }
      }
      position = Math.min(position, end);
    }
    return this.#extentOf(kind!, position - at, host, data);
  }

  /** The index of the first subcluster after `first` that is of another kind. */
  #subclusterRun(words: Uint32Array, word: number, whole: Kind, first: number, kind: Kind): number {
    let next = first + 1;
    while (next < SUBCLUSTERS && subclusterKind(words, word, whole, next) === kind) next++;
    return next;
  }

  #extent(kind: MapKind, length: number, host: number): Extent {
    return this.#extentOf(kind, length, host, this.#image.data);
  }

  #extentOf(kind: MapKind, length: number, host: number, storage: Image['data']): Extent {
    switch (kind) {
      case Kind.normal:
        return { kind: 'data', length, storage, at: host };
      case Kind.zeroAlloc:
        return { kind: 'zero', length, storage, at: host };
      case Kind.zeroPlain:
        return { kind: 'zero', length };
      case RESERVED:
        return { kind: 'backing', length, storage, at: host };
      default:
        return { kind: 'backing', length };
    }
  }

  #checkOffset(at: number, guest: number, l2At: number, entry: number): void {
    const { geometry } = this.#image;
    if (at % geometry.clusterSize !== 0 || !Number.isSafeInteger(at + geometry.clusterSize)) {
      const where = `(L2 offset: ${hex(l2At)}, L2 index: ${hex(entry)})`;
      throw this.#image.corrupt(`Cluster allocation offset ${hex(at)} unaligned ${where}`);
    }
    if (geometry.externalData && at !== guest) {
      throw this.#image.corrupt(
        `External data file host cluster offset ${hex(at)} does not match guest cluster offset: ${hex(guest)}, L2 index: ${hex(entry)})`,
      );
    }
  }

  #compressed({ at: l2At, table: words }: L2Table, word: number, range: Range, clusterStart: number): Extent {
    const { geometry } = this.#image;
    const { clusterSize } = geometry;
    if (geometry.externalData) {
      const where = `(L2 offset: ${hex(l2At)}, L2 index: ${hex(word / geometry.l2Words)})`;
      throw this.#image.corrupt(`Compressed cluster entry found in image with external data file ${where}`);
    }
    const at = packedOffset(words, word, geometry);
    const stored = packedLength(words, word, geometry);
    const offset = range.at - clusterStart;
    const length = Math.min(range.length, clusterSize - offset);
    return {
      kind: 'packed',
      length,
      read: (into) => this.#packed.read({ at, length: stored }, offset, into),
    };
  }
}
