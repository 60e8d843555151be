/** The bits of a stored bitmap, a cluster of them at a time. */
import { ImageError } from '../../error.js';
import { Bits } from '../../node/dirty-bits.js';
import { readBitmapTable, type StoredBitmap } from './bitmaps.js';
import type { Image } from './image.js';
import { bitmapCluster } from './layout.js';

export type Page = readonly [index: number, page: Uint8Array | 'ones'];

/** Whether so many bytes of bits may be read: without, they count as ones. */
export type MayRead = (bytes: number) => boolean;

interface Source {
  readonly name: string;
  /** Guest bytes. */
  readonly granularity: number;
  /** Undefined for one that is not on the disk. */
  readonly stored: StoredBitmap | undefined;
}

/** The pages that are not zeros, in order, as they are on the disk: bits behind the image's end may be set. Throws `corrupt`. */
export async function* storedPages(
  { file, geometry, size }: Image,
  { name, granularity, stored }: Source,
  mayRead: MayRead = () => true,
): AsyncGenerator<Page> {
  if (stored === undefined) return;
  const { clusterSize } = geometry;
  const bad = () =>
    new ImageError('corrupt', `Could not read bitmap '${name}' from disk`, { path: file.filename });
  if (stored.tableEntries !== Math.ceil(size / (granularity * clusterSize * 8))) throw bad();
  const table = await readBitmapTable(file, stored.tableAt, stored.tableEntries);
  for (let index = 0; index < table.length / 2; index++) {
    const cluster = bitmapCluster(table, index);
    if (cluster.kind === 'invalid') throw bad();
    if (cluster.kind === 'ones') yield [index, 'ones'];
    if (cluster.kind !== 'data') continue;
    if (cluster.at % clusterSize !== 0 || cluster.at + clusterSize > file.size + clusterSize) throw bad();
    if (!mayRead(clusterSize)) {
      yield [index, 'ones'];
      continue;
    }
    const page = new Uint8Array(clusterSize);
    await file.read(cluster.at, page);
    yield [index, page];
  }
}

/** The same with what was touched since, up to the image's end. */
export async function* touchedPages(
  image: Image,
  source: Source,
  touched: Bits | undefined,
  mayRead?: MayRead,
): AsyncGenerator<Page> {
  const together = (index: number, ...pages: (Page[1] | undefined)[]): Page[] => {
    const one = new Bits(source.granularity, image.geometry.clusterSize);
    for (const page of pages) if (page !== undefined) one.addPage(index, page);
    one.truncate(image.size);
    return one.pages();
  };
  const added = touched?.pages() ?? [];
  let next = 0;
  for await (const [index, page] of storedPages(image, source, mayRead)) {
    for (; next < added.length && added[next]![0] < index; next++) yield* together(...added[next]!);
    const same = added[next]?.[0] === index ? added[next++]![1] : undefined;
    yield* together(index, page, same);
  }
  for (; next < added.length; next++) yield* together(...added[next]!);
}
