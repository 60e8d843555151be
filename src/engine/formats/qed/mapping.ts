/** Where guest bytes are: the walk over the L1 table and L2 tables, page by page. */
import type { Extent } from '../../node/driver.js';
import type { MaybePromise, Range } from '../../storage/storage.js';
import type { QedImage } from './image.js';
import { ENTRY_BYTES, entryAt, UNALLOCATED, ZERO_CLUSTER } from './layout.js';

type Kind = 'data' | 'zero' | 'backing';

/** L1 entries that one answer covers at most: an empty image may have millions. */
const MAX_TABLES = 1 << 16;

/** The first extent of the range, merged as far as tables are in memory. */
export function map(image: QedImage, range: Range): MaybePromise<Extent> {
  const found = attempt(image, range);
  return found instanceof Promise ? later(image, range, found) : found;
}

async function later(image: QedImage, range: Range, pending: Promise<void>): Promise<Extent> {
  for (let waiting = pending; ; ) {
    await waiting;
    const found = attempt(image, range);
    if (!(found instanceof Promise)) return found;
    waiting = found;
  }
}

function attempt(image: QedImage, { at, length }: Range): Extent | Promise<void> {
  const { geometry } = image;
  const { clusterSize, l2Span, pageBytes, pageEntries } = geometry;
  const end = at + length;
  let kind: Kind | undefined;
  let host = 0;
  let position = at;
  for (let tables = 0; position < end && (kind === undefined || tables < MAX_TABLES); tables++) {
    const index = Math.floor(position / l2Span);
    const directory = image.l1.get(image.l1At + Math.floor(index / pageEntries) * pageBytes);
    if (directory instanceof Promise) {
      if (kind !== undefined) break;
      return directory;
    }
    const tableAt = entryAt(directory.table, index % pageEntries);
    const tableEnd = Math.min(end, (index + 1) * l2Span);
    if (tableAt === UNALLOCATED) {
      if (kind !== undefined && kind !== 'backing') break;
      kind = 'backing';
      position = tableEnd;
      continue;
    }
    if (!image.validTable(tableAt)) {
      if (kind !== undefined) break;
      throw image.damaged(image.l1At + index * ENTRY_BYTES);
    }
    let cluster = Math.floor(position / clusterSize) - index * geometry.tableEntries;
    while (position < tableEnd) {
      const pageAt = tableAt + Math.floor(cluster / pageEntries) * pageBytes;
      const page = image.l2.get(pageAt);
      if (page instanceof Promise) {
        if (kind === undefined) return page;
        return extent(image, kind, position - at, host);
      }
      const words = page.table;
      let entry = cluster % pageEntries;
      for (; entry < pageEntries && position < tableEnd; entry++, cluster++) {
        const offset = entryAt(words, entry);
        const found: Kind = offset === UNALLOCATED ? 'backing' : offset === ZERO_CLUSTER ? 'zero' : 'data';
        if (found === 'data') {
          const there = offset + (position % clusterSize);
          const fits = kind === undefined || (kind === 'data' && there === host + (position - at));
          if (!fits) return extent(image, kind!, position - at, host);
          if (!image.validCluster(offset)) {
            if (kind !== undefined) return extent(image, kind, position - at, host);
            throw image.damaged(pageAt + entry * ENTRY_BYTES);
          }
          if (kind === undefined) host = there;
        } else if (kind !== undefined && found !== kind) return extent(image, kind, position - at, host);
        kind = found;
        position += clusterSize - (position % clusterSize);
      }
    }
    position = Math.min(position, end);
  }
  return extent(image, kind!, Math.min(position, end) - at, host);
}

function extent(image: QedImage, kind: Kind, length: number, host: number): Extent {
  return kind === 'data' ? { kind, length, storage: image.file, at: host } : { kind, length };
}
