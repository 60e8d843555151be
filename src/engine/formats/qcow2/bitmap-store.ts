/**
 * The persistent bitmaps of an open image: kept up to date while the guest's data changes, edited, and stored.
 *
 * Before the first change of guest data the bitmaps are marked in use on the disk, so that after a crash nobody trusts them.
 * When the image is closed all of them are written anew: bits and tables, then a directory, each in a new place, then the
 * header is switched to it; what they took before is freed last.
 */
import { ImageError } from '../../error.js';
import {
  bitmapExists,
  bitmapNotFound,
  checkNew,
  checkSizes,
  defaultGranularity,
} from '../../node/dirty-bitmaps.js';
import { Bits, bitsIn } from '../../node/dirty-bits.js';
import type { BitmapContent, BitmapFacet, BitmapInfo } from '../../node/driver.js';
import { rewriteHeader } from './backing.js';
import { type MayRead, type Page, storedPages, touchedPages } from './bitmap-pages.js';
import { type BitmapDirectory, readBitmaps, readBitmapTable, type StoredBitmap } from './bitmaps.js';
import type { Image } from './image.js';
import {
  Autoclear,
  BITMAP_TYPE_DIRTY,
  BitmapEntry,
  BitmapFlag,
  BitmapsExtension,
  bitmapCluster,
  ExtensionType,
  MAX_BITMAP_NAME,
  MAX_BITMAPS,
  offsetAt,
  storeTable,
} from './layout.js';
import type { Refcounts } from './refcounts.js';
import { Freed } from './runtime.js';

/** What is read at a time to count dirty bytes: the bits of 32 TiB in granules of 64 KiB. */
const MAX_COUNTED_BYTES = 64 * 2 ** 20;

interface Bitmap {
  readonly name: string;
  readonly granularity: number;
  /** Records the guest's writes. */
  auto: boolean;
  /** Was marked in use when the image was opened. */
  readonly inconsistent: boolean;
  /** Where it is on the disk; undefined for a new one. */
  readonly stored: StoredBitmap | undefined;
  /** What is on the disk and was changed since: undefined while it is on the disk alone. */
  bits: Bits | undefined;
  /** What the guest has written since, beside `bits`. */
  touched: Bits | undefined;
  /** Dirty bytes of what is on the disk, where they were counted. */
  counted: number | undefined;
}

interface Place {
  readonly at: number;
  readonly length: number;
}

export class Bitmaps implements BitmapFacet {
  readonly #image: Image;
  readonly #refcounts: Refcounts | undefined;
  #directory: BitmapDirectory | undefined;
  #bitmaps: Bitmap[];
  /** What is in memory differs from the disk. */
  #changed = false;

  constructor(
    image: Image,
    refcounts: Refcounts | undefined,
    found: { readonly directory: BitmapDirectory; readonly list: readonly StoredBitmap[] } | undefined,
  ) {
    this.#image = image;
    this.#refcounts = refcounts;
    this.#directory = found?.directory;
    image.overlaps.bitmapDirectory = this.#directory;
    this.#bitmaps = (found?.list ?? []).map((stored) => ({
      name: stored.info.name,
      granularity: stored.info.granularity,
      auto: (stored.flags & BitmapFlag.auto) !== 0,
      inconsistent: (stored.flags & BitmapFlag.inUse) !== 0,
      stored,
      bits: undefined,
      touched: undefined,
      counted: undefined,
    }));
  }

  list(): readonly BitmapInfo[] {
    return this.#bitmaps.map(({ name, granularity, auto, inconsistent }) => ({
      name,
      granularity,
      flags: [...(inconsistent ? ['in-use'] : []), ...(auto ? ['auto'] : [])],
    }));
  }

  /** The guest bytes of the range are going to change. */
  touch(at: number, length: number): void {
    for (const bitmap of this.#bitmaps) {
      if (!bitmap.auto || bitmap.inconsistent) continue;
      bitmap.touched ??= new Bits(bitmap.granularity, this.#image.geometry.clusterSize);
      bitmap.touched.mark(at, Math.min(at + length, this.#image.size));
      this.#changed = true;
    }
  }

  /** Before the first change of guest data: says on the disk that the bitmaps cannot be trusted until they are stored. */
  async markInUse(which: 'active' | 'all' = 'active'): Promise<void> {
    const { file } = this.#image;
    const directory = this.#directory;
    let marked = false;
    for (const { stored, auto, inconsistent } of this.#bitmaps) {
      if (stored === undefined || inconsistent || (which === 'active' && !auto)) continue;
      const bytes = new Uint8Array(4);
      new DataView(bytes.buffer).setUint32(0, stored.flags | BitmapFlag.inUse);
      if (!marked && directory !== undefined) {
        this.#image.guardMetadata(directory.at, directory.length, 'bitmap-directory');
      }
      await file.write(stored.flagsAt, bytes);
      marked = true;
    }
    if (marked) await file.flush();
  }

  /** The guest's size is about to change: all bits come into memory. Throws where one cannot be trusted. */
  async beforeResize(): Promise<void> {
    for (const bitmap of this.#bitmaps) {
      checkConsistent(bitmap);
      await this.#load(bitmap);
    }
    await this.markInUse('all');
    if (this.#bitmaps.length > 0) this.#changed = true;
  }

  // ------------------------------------------------------------------------------------------------------------ editing

  add(name: string, granularity?: number): Promise<void> {
    const { clusterSize } = this.#image.geometry;
    const wanted = granularity ?? defaultGranularity(clusterSize);
    const persistent = (why: string) =>
      new ImageError('invalid', `Can't make bitmap '${name}' persistent in '#block000': ${why}`);
    if (this.#image.header.version < 3) throw persistent('Cannot store dirty bitmaps in qcow2 v2 files');
    checkNew(name, wanted);
    if (this.#bitmaps.some((each) => each.name === name)) throw bitmapExists(name);
    if (Buffer.byteLength(name) > MAX_BITMAP_NAME) {
      throw persistent(`Name length exceeds maximum (${MAX_BITMAP_NAME} characters)`);
    }
    if (this.#bitmaps.length >= MAX_BITMAPS) {
      throw persistent('Maximum number of persistent bitmaps is already reached');
    }
    const bits = new Bits(wanted, clusterSize);
    // New ones are stored behind the others, the newest first, as the reference has it.
    const place = this.#bitmaps.findIndex(({ stored }) => stored === undefined);
    this.#bitmaps.splice(place < 0 ? this.#bitmaps.length : place, 0, {
      name,
      granularity: wanted,
      auto: true,
      inconsistent: false,
      stored: undefined,
      bits,
      touched: undefined,
      counted: undefined,
    });
    this.#changed = true;
    return Promise.resolve();
  }

  remove(name: string): Promise<void> {
    const found = this.#find(name);
    this.#bitmaps = this.#bitmaps.filter((each) => each !== found);
    this.#changed = true;
    return Promise.resolve();
  }

  clear(name: string): Promise<void> {
    const bitmap = this.#usable(name);
    bitmap.bits = new Bits(bitmap.granularity, this.#image.geometry.clusterSize);
    bitmap.touched = undefined;
    this.#changed = true;
    return Promise.resolve();
  }

  setEnabled(name: string, enabled: boolean): Promise<void> {
    this.#usable(name).auto = enabled;
    this.#changed = true;
    return Promise.resolve();
  }

  async merge(name: string, source: BitmapContent): Promise<void> {
    const bitmap = this.#usable(name);
    const { size } = this.#image;
    checkSizes(size, source.size);
    const bits = await this.#load(bitmap);
    for (const [at, end] of source.runs()) bits.mark(at, Math.min(end, size));
    this.#changed = true;
  }

  async content(name: string): Promise<BitmapContent> {
    const bits = await this.#load(this.#usable(name));
    return { size: this.#image.size, runs: () => bits.runs() };
  }

  async counts(): Promise<ReadonlyMap<string, number>> {
    const counts = new Map<string, number>();
    let left = MAX_COUNTED_BYTES;
    const mayRead = (bytes: number) => {
      left -= bytes;
      return left >= 0;
    };
    for (const bitmap of [...this.#bitmaps]) counts.set(bitmap.name, await this.#count(bitmap, mayRead));
    return counts;
  }

  async #count(bitmap: Bitmap, mayRead: MayRead): Promise<number> {
    if (bitmap.inconsistent) return 0;
    const asStored = bitmap.bits === undefined && bitmap.touched === undefined;
    if (asStored && bitmap.counted !== undefined) return bitmap.counted;
    const pageBits = this.#image.geometry.clusterSize * 8;
    const all = Math.ceil(this.#image.size / bitmap.granularity);
    let bits = 0;
    for await (const [index, page] of this.#pages(bitmap, mayRead)) {
      bits += page === 'ones' ? Math.min(pageBits, all - index * pageBits) : bitsIn(page);
    }
    const counted = bits * bitmap.granularity;
    if (asStored) bitmap.counted = counted;
    return counted;
  }

  #find(name: string): Bitmap {
    const found = this.#bitmaps.find((each) => each.name === name);
    if (found === undefined) throw bitmapNotFound(name);
    return found;
  }

  #usable(name: string): Bitmap {
    const found = this.#find(name);
    checkConsistent(found);
    return found;
  }

  // ----------------------------------------------------------------------------------------------------------- the disk

  /** The bits of a bitmap, with what the guest has touched since. */
  async #load(bitmap: Bitmap): Promise<Bits> {
    bitmap.bits ??= await this.#read(bitmap);
    if (bitmap.touched !== undefined) {
      for (const [at, end] of bitmap.touched.runs()) bitmap.bits.mark(at, end);
      bitmap.touched = undefined;
    }
    return bitmap.bits;
  }

  async #read(bitmap: Bitmap): Promise<Bits> {
    const bits = new Bits(bitmap.granularity, this.#image.geometry.clusterSize);
    for await (const [index, page] of storedPages(this.#image, bitmap)) bits.setPage(index, page);
    bits.truncate(this.#image.size);
    return bits;
  }

  /** The pages that are not zeros; where the bits are in memory already these, else one page at a time is read. */
  async *#pages(bitmap: Bitmap, mayRead?: MayRead): AsyncGenerator<Page> {
    if (bitmap.bits === undefined) {
      yield* touchedPages(this.#image, bitmap, bitmap.touched, mayRead);
      return;
    }
    const bits = await this.#load(bitmap);
    bits.truncate(this.#image.size);
    yield* bits.pages();
  }

  /** What a bitmap takes on the disk. */
  async #places(stored: StoredBitmap): Promise<Place[]> {
    const { clusterSize } = this.#image.geometry;
    const places: Place[] = [{ at: stored.tableAt, length: stored.tableEntries * 8 }];
    const table = await readBitmapTable(this.#image.file, stored.tableAt, stored.tableEntries);
    for (let index = 0; index < table.length / 2; index++) {
      if (bitmapCluster(table, index).kind !== 'data') continue;
      const at = offsetAt(table, index * 2);
      if (at % clusterSize === 0) places.push({ at, length: clusterSize });
    }
    return places;
  }

  /** Writes everything that has changed. The image's other metadata is on the disk. */
  async store(): Promise<void> {
    const { file, geometry, writeback } = this.#image;
    const refcounts = this.#refcounts;
    if (!this.#changed || refcounts === undefined) return;
    const { clusterSize } = geometry;
    const roomFor = async (bytes: number) => (await refcounts.allocateRun(Math.ceil(bytes / clusterSize))).at;
    const before = this.#directory === undefined ? [] : await readBitmaps(file, this.#directory, geometry);
    const kept = new Set<StoredBitmap>();
    const entries: Uint8Array[] = [];
    for (const bitmap of this.#bitmaps) {
      const { stored } = bitmap;
      let place: { tableAt: number; tableEntries: number };
      if (stored !== undefined && bitmap.bits === undefined && bitmap.touched === undefined) {
        kept.add(stored);
        place = stored;
      } else place = await this.#write(bitmap, roomFor);
      entries.push(encodeEntry(bitmap, place));
    }
    let extension: Uint8Array | undefined;
    let stored: Place | undefined;
    if (entries.length > 0) {
      const directory = Buffer.concat(entries);
      const at = await roomFor(directory.byteLength);
      await file.write(at, directory);
      stored = { at, length: directory.byteLength };
      extension = BitmapsExtension.encode({
        count: entries.length,
        directorySize: BigInt(directory.byteLength),
        directoryOffset: BigInt(at),
      });
    }
    await writeback.run();
    await rewriteHeader(this.#image, (header) => {
      header.extensions = header.extensions.filter(({ type }) => type !== ExtensionType.bitmaps);
      header.autoclear &= ~Autoclear.bitmaps;
      if (extension === undefined) return;
      header.extensions.push({ type: ExtensionType.bitmaps, data: extension });
      header.autoclear |= Autoclear.bitmaps;
    });
    const whole = (bytes: number) => Math.ceil(bytes / clusterSize) * clusterSize;
    const old = this.#directory;
    this.#image.overlaps.bitmapDirectory = stored;
    if (old !== undefined) refcounts.deferFree(old.at, whole(old.length));
    for (const stored of before) {
      if ([...kept].some((each) => each.tableAt === stored.tableAt)) continue;
      for (const { at, length } of await this.#places(stored))
        refcounts.deferFree(at, whole(length), Freed.bitmap);
    }
    this.#changed = false;
    await writeback.run();
  }

  /** Writes bits and their table to new places. */
  async #write(
    bitmap: Bitmap,
    roomFor: (bytes: number) => Promise<number>,
  ): Promise<{ tableAt: number; tableEntries: number }> {
    const { file, size, geometry } = this.#image;
    const tableEntries = Math.max(1, Math.ceil(size / (bitmap.granularity * geometry.clusterSize * 8)));
    const table = new Uint32Array(tableEntries * 2);
    for await (const [index, page] of this.#pages(bitmap)) {
      if (page === 'ones') {
        table[index * 2 + 1] = 1;
        continue;
      }
      if (page.every((byte) => byte === 0)) continue;
      const at = await roomFor(page.byteLength);
      await file.write(at, page);
      table[index * 2] = Math.floor(at / 2 ** 32);
      table[index * 2 + 1] = at >>> 0;
    }
    const tableAt = await roomFor(table.byteLength);
    await file.write(tableAt, storeTable(table));
    return { tableAt, tableEntries };
  }
}

function checkConsistent({ name, inconsistent }: Bitmap): void {
  if (!inconsistent) return;
  throw new ImageError('invalid', `Bitmap '${name}' is inconsistent and cannot be used`, {
    hint: 'Try block-dirty-bitmap-remove to delete this bitmap from disk',
  });
}

function encodeEntry(bitmap: Bitmap, place: { tableAt: number; tableEntries: number }): Uint8Array {
  const name = Buffer.from(bitmap.name);
  const fixed = BitmapEntry.encode({
    tableOffset: BigInt(place.tableAt),
    tableSize: place.tableEntries,
    flags: (bitmap.auto ? BitmapFlag.auto : 0) | (bitmap.inconsistent ? BitmapFlag.inUse : 0),
    type: BITMAP_TYPE_DIRTY,
    granularityBits: Math.log2(bitmap.granularity),
    nameSize: name.byteLength,
  });
  const entry = Buffer.concat([fixed, name]);
  return Buffer.concat([entry, new Uint8Array(-entry.byteLength & 7)]);
}
