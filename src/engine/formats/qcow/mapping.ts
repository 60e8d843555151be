/** Where guest bytes are: the walk over the L1 table and L2 tables. */
import type { Extent } from '../../node/driver.js';
import type { MaybePromise, Range } from '../../storage/storage.js';
import { later } from '../later.js';
import type { PackedReader } from '../packed-reader.js';
import type { QcowImage } from './image.js';
import { ENTRY_BYTES, entryAt, isCompressed, L1_PAGE_BYTES, packedAt, packedLength } from './layout.js';

/** L1 entries that one answer covers at most. */
const MAX_TABLES = 1 << 16;
const PAGE_ENTRIES = L1_PAGE_BYTES / ENTRY_BYTES;

export class Mapping {
  readonly #image: QcowImage;
  readonly #packed: PackedReader;

  constructor(image: QcowImage, packed: PackedReader) {
    this.#image = image;
    this.#packed = packed;
  }

  /** The first extent of the range, merged as far as tables are in memory. */
  map(range: Range): MaybePromise<Extent> {
    const found = this.#attempt(range);
    return found instanceof Promise ? later(found, () => this.#attempt(range)) : found;
  }

  #attempt({ at, length }: Range): Extent | Promise<void> {
    const image = this.#image;
    const { clusterSize, l2Entries, l2Span } = image.geometry;
    const end = at + length;
    let kind: 'data' | 'backing' | undefined;
    let host = 0;
    let position = at;
    for (let tables = 0; position < end && (kind === undefined || tables < MAX_TABLES); tables++) {
      const index = Math.floor(position / l2Span);
      const page = image.l1Page(index);
      if (page instanceof Promise) {
        if (kind !== undefined) break;
        return page;
      }
      const tableAt = entryAt(page.table, index % PAGE_ENTRIES);
      const tableEnd = Math.min(end, (index + 1) * l2Span);
      if (tableAt === 0) {
        if (kind === 'data') break;
        kind = 'backing';
        position = tableEnd;
        continue;
      }
      if (!image.validTable(tableAt)) {
        if (kind !== undefined) break;
        throw image.damaged(image.l1At + index * ENTRY_BYTES);
      }
      const table = image.l2.get(tableAt);
      if (table instanceof Promise) {
        if (kind !== undefined) break;
        return table;
      }
      const words = table.table;
      for (let entry = Math.floor(position / clusterSize) % l2Entries; position < tableEnd; entry++) {
        const within = position % clusterSize;
        if (isCompressed(words, entry)) {
          if (kind !== undefined) return this.#extent(kind, position - at, host);
          return this.#compressed(words, entry, within, end - position);
        }
        const offset = entryAt(words, entry);
        if (offset === 0) {
          if (kind === 'data') return this.#extent(kind, position - at, host);
          kind = 'backing';
        } else {
          const there = offset + within;
          const fits = kind === undefined || (kind === 'data' && there === host + (position - at));
          if (!fits) return this.#extent(kind!, position - at, host);
          if (!image.validCluster(offset)) {
            if (kind !== undefined) return this.#extent(kind, position - at, host);
            throw image.damaged(tableAt + entry * ENTRY_BYTES);
          }
          if (kind === undefined) host = there;
          kind = 'data';
        }
        position += clusterSize - within;
      }
      position = Math.min(position, end);
    }
    return this.#extent(kind!, position - at, host);
  }

  #extent(kind: 'data' | 'backing', length: number, host: number): Extent {
    return kind === 'data' ? { kind, length, storage: this.#image.file, at: host } : { kind, length };
  }

  #compressed(words: Uint32Array, entry: number, offset: number, wanted: number): Extent {
    const { geometry } = this.#image;
    const stored = { at: packedAt(words, entry, geometry), length: packedLength(words, entry, geometry) };
    if (stored.at > Number.MAX_SAFE_INTEGER - stored.length) throw this.#image.damaged(0);
    return {
      kind: 'packed',
      length: Math.min(wanted, geometry.clusterSize - offset),
      read: (into) => this.#packed.read(stored, offset, into),
    };
  }
}
