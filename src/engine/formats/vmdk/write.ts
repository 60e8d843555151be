/** Writing guest bytes: where they go, and how new grains are linked once they were written. */
import { ImageError } from '../../error.js';
import type { WriteTarget } from '../../node/driver.js';
import type { MaybePromise, Range, Storage } from '../../storage/storage.js';
import { later } from '../later.js';
import { renewCid } from './cid.js';
import { DirtyTables } from './dirty.js';
import type { SparseExtent, VmdkExtent } from './extent.js';
import { extentIndex } from './info.js';
import { bytesOfWords, SECTOR } from './layout.js';
import type { VmdkImage } from './open.js';
import { Space } from './space.js';
import { StreamWriter } from './stream.js';
import { ABSENT, brokenTable, type GrainTables, grainAt, grainRun } from './tables.js';

/** One target covers at most this many guest bytes. */
const MAX_TARGET = 8 * 1024 * 1024;
/** A new grain that is written in part is filled in memory. Writers use 64 KiB; larger ones than this are only read. */
const MAX_GRAIN = MAX_TARGET;
/** A table entry that says "zeros", where the extent uses it. */
const ZERO_ENTRY = 1;

/** New grains, one behind the other, to be linked in one table. There is one for each write, so it is a class. */
class GrainTarget implements WriteTarget {
  readonly storage: Storage;
  readonly at: number;
  readonly length: number;
  readonly fillBefore: number;
  readonly fillAfter: number;
  readonly #writer: Writer;
  readonly #extent: SparseExtent;
  readonly #table: number;
  readonly #entry: number;
  readonly #count: number;

  constructor(
    writer: Writer,
    extent: SparseExtent,
    place: { readonly table: number; readonly entry: number; readonly count: number; readonly host: number },
    length: number,
    fill: { readonly before: number; readonly after: number },
  ) {
    this.storage = extent.storage;
    this.at = place.host + fill.before;
    this.length = length;
    this.fillBefore = fill.before;
    this.fillAfter = fill.after;
    this.#writer = writer;
    this.#extent = extent;
    this.#table = place.table;
    this.#entry = place.entry;
    this.#count = place.count;
  }

  commit(): MaybePromise<void> {
    const host = this.at - this.fillBefore;
    return this.#writer.link(this.#extent, this.#table, this.#entry, this.#count, host);
  }

  abort(): void {
    this.#writer.unused(this.#extent, this.at - this.fillBefore, this.#count * this.#extent.grain);
  }
}

export class Writer {
  readonly #image: VmdkImage;
  readonly #tables: GrainTables;
  readonly #space = new Space();
  readonly #dirty: DirtyTables;
  readonly #streams = new Map<SparseExtent, StreamWriter>();
  readonly #storages: ReadonlySet<Storage>;
  /** Where grains of an extent do not lie on the units that the access path locks: one target at a time then. */
  readonly #crooked: boolean;
  #outstanding: { readonly done: Promise<void>; readonly settle: () => void } | undefined;
  #ready = false;
  #readying: Promise<void> | undefined;
  readonly #adding = new Map<string, Promise<void>>();

  constructor(image: VmdkImage, tables: GrainTables, unit: number, say: (line: string) => void) {
    this.#image = image;
    this.#tables = tables;
    this.#dirty = new DirtyTables(tables, () => this.#barrier());
    const files = image.extents.flatMap((extent) => (extent.kind === 'zero' ? [] : [extent.storage]));
    this.#storages = new Set([image.file, ...files].filter((storage) => storage.writable));
    for (const extent of image.extents) {
      if (extent.kind !== 'sparse' || !extent.compressed) continue;
      this.#streams.set(extent, new StreamWriter(extent, tables, this.#space, this.#dirty, say));
    }
    this.#crooked = image.extents.some(
      (extent) => extent.kind === 'sparse' && (extent.at % extent.grain !== 0 || unit % extent.grain !== 0),
    );
  }

  /** What compressed grains of the extent go through. */
  stream(extent: SparseExtent): StreamWriter | undefined {
    return this.#streams.get(extent);
  }

  /** Before anything of the content changes, the image gets another content id. */
  ready(): Promise<void> | undefined {
    if (this.#ready) return undefined;
    this.#readying ??= renewCid(this.#image.file, this.#image.idsAt, this.#image.cid).then(
      (cid) => {
        this.#image.cid = cid;
        this.#ready = true;
      },
      (error) => {
        this.#readying = undefined;
        throw error;
      },
    );
    return this.#readying;
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    const found = this.#attempt(range);
    return found instanceof Promise ? later(found, () => this.#attempt(range)) : found;
  }

  #extentAt(at: number): VmdkExtent {
    const extent = this.#image.extents[extentIndex(this.#image.extents, at)]!;
    if (extent.kind === 'zero') {
      throw new ImageError('unsupported', 'Extents of zeros cannot be written', { offset: at, errno: 'EIO' });
    }
    if (!extent.storage.writable) {
      throw new ImageError('read-only', `'${extent.storage.filename}' is opened read-only`, {
        path: extent.storage.filename,
        errno: 'EROFS',
      });
    }
    return extent;
  }

  #attempt({ at, length }: Range): WriteTarget | Promise<unknown> {
    const extent = this.#extentAt(at);
    const ready = this.ready();
    if (ready !== undefined) return ready;
    const within = at - extent.at;
    const most = Math.min(length, extent.size - within);
    if (extent.kind === 'flat') {
      const host = extent.start + within;
      return { storage: extent.storage, at: host, length: most, fillBefore: 0, fillAfter: 0 };
    }
    if (extent.kind === 'zero') throw new ImageError('internal', 'a zero extent was let through');
    const index = Math.floor(within / (extent.grain * extent.entriesPerTable));
    const table = this.#tables.cached(extent, index);
    if (table === undefined) return this.#tables.load(extent, index);
    if (extent.compressed)
      return this.#streams.get(extent)!.target(within, Math.min(most, MAX_TARGET), table);
    if (table === ABSENT) return this.#addTable(extent, index);
    return this.#plain(extent, index, table, within, Math.min(most, MAX_TARGET));
  }

  #plain(
    extent: SparseExtent,
    index: number,
    table: Uint32Array,
    within: number,
    length: number,
  ): WriteTarget | Promise<unknown> {
    const { grain, entriesPerTable, storage } = extent;
    const before = within % grain;
    const { sector, length: run } = grainRun(extent, table, within, length);
    if (sector >= 0) {
      const host = sector * SECTOR;
      if (host < extent.metadataEnd) throw brokenTable(extent, within, 'A grain lies in the metadata');
      return { storage, at: host + before, length: run, fillBefore: 0, fillAfter: 0 };
    }
    if (grain > MAX_GRAIN) {
      throw new ImageError(
        'limit',
        `Grains of ${grain} bytes cannot be written (the limit is ${MAX_GRAIN})`,
        { path: storage.filename, errno: 'ENOTSUP' },
      );
    }
    if (this.#crooked && this.#outstanding !== undefined) return this.#outstanding.done;
    const first = (within - before) / grain;
    const end = within + run;
    // Holes and grains of zeros alike become data.
    let last = Math.ceil(end / grain);
    const most = Math.min(Math.ceil((within + length) / grain), (index + 1) * entriesPerTable);
    while (last < most && grainAt(extent, table, last * grain) < 0) last++;
    const covered = Math.min(within + length, last * grain) - within;
    // The image's end is made whole with zeros; an extent's end inside the image is an end: what follows is another's.
    const inside = extent.at + extent.size < this.#image.size ? extent.size : last * grain;
    const after = Math.max(0, Math.min(last * grain, inside) - (within + covered));
    const count = last - first;
    const host = this.#space.take(extent, count * grain, grain);
    if (this.#crooked) this.#occupy();
    return new GrainTarget(
      this,
      extent,
      { table: index, entry: first % entriesPerTable, count, host },
      covered,
      { before, after },
    );
  }

  #occupy(): void {
    let settle = () => {};
    const done = new Promise<void>((resolve) => {
      settle = resolve;
    });
    this.#outstanding = { done, settle };
  }

  #vacate(): void {
    this.#outstanding?.settle();
    this.#outstanding = undefined;
  }

  unused(extent: SparseExtent, host: number, bytes: number): void {
    this.#vacate();
    this.#space.giveBack(extent, host, bytes);
  }

  /** Enters `count` grains at a host offset, which were written, into table `index` from `entry` on. */
  link(extent: SparseExtent, index: number, entry: number, count: number, host: number): MaybePromise<void> {
    this.#vacate();
    const table = this.#tables.cached(extent, index);
    // It was at hand when the place was chosen; meanwhile others may have pushed it out.
    if (table === undefined || table === ABSENT) {
      return this.#tables
        .load(extent, index)
        .then((loaded) => this.#enter(extent, index, loaded, entry, count, host));
    }
    return this.#enter(extent, index, table, entry, count, host);
  }

  #enter(
    extent: SparseExtent,
    index: number,
    table: Uint32Array,
    entry: number,
    count: number,
    host: number,
  ): MaybePromise<void> {
    const step = extent.grain / SECTOR;
    for (let n = 0; n < count; n++) table[entry + n] = host / SECTOR + n * step;
    this.#dirty.mark(extent, index, table, entry, entry + count);
    return this.#dirty.crowded ? this.#dirty.write() : undefined;
  }

  /** A table where the directory has none: at the end of the file, empty, and durable before it is entered. */
  #addTable(extent: SparseExtent, index: number): Promise<void> {
    const key = `${extent.index},${index}`;
    let adding = this.#adding.get(key);
    if (adding === undefined) {
      adding = this.#newTable(extent, index).finally(() => this.#adding.delete(key));
      this.#adding.set(key, adding);
    }
    return adding;
  }

  async #newTable(extent: SparseExtent, index: number): Promise<void> {
    if ((await this.#tables.load(extent, index)) !== ABSENT) return;
    const { storage, directoryAt, backupAt } = extent;
    const bytes = Math.ceil((extent.entriesPerTable * 4) / SECTOR) * SECTOR;
    const places =
      backupAt === undefined || backupAt === directoryAt ? [directoryAt] : [directoryAt, backupAt];
    if (places.some((at) => at + (index + 1) * 4 > storage.size)) {
      const within = index * extent.entriesPerTable * extent.grain;
      throw brokenTable(extent, within, 'The grain directory is not in the file');
    }
    const at = this.#space.take(extent, places.length * bytes, SECTOR);
    await storage.write(at, Buffer.alloc(places.length * bytes));
    await storage.flush();
    for (const [number, directory] of places.entries()) {
      const sector = (at + number * bytes) / SECTOR;
      await storage.write(directory + index * 4, bytesOfWords(Uint32Array.of(sector)));
    }
    this.#tables.entered(extent, index, at / SECTOR, (at + (places.length - 1) * bytes) / SECTOR);
  }

  /** Whole units as zeros by their table entries; false where an extent has no such entries. */
  async zero({ at, length }: Range, unmap: boolean): Promise<boolean> {
    const pieces: { readonly extent: VmdkExtent; readonly from: number; readonly to: number }[] = [];
    for (let position = at; position < at + length; ) {
      const extent = this.#extentAt(position);
      const from = position - extent.at;
      const to = Math.min(extent.size, at + length - extent.at);
      if (extent.kind === 'sparse') {
        const whole = from % extent.grain === 0 && (to % extent.grain === 0 || to === extent.size);
        if (!extent.zeroedGrains || extent.compressed || this.#crooked || !whole) return false;
      }
      pieces.push({ extent, from, to });
      position = extent.at + to;
    }
    await this.ready();
    for (const { extent, from, to } of pieces) {
      if (extent.kind === 'flat') {
        await extent.storage.zero({ at: extent.start + from, length: to - from }, { unmap });
      } else if (extent.kind === 'sparse') await this.#zeroGrains(extent, from, to);
    }
    return true;
  }

  async #zeroGrains(extent: SparseExtent, from: number, to: number): Promise<void> {
    const { grain, entriesPerTable } = extent;
    const end = Math.ceil(to / grain);
    for (let first = from / grain; first < end; ) {
      const index = Math.floor(first / entriesPerTable);
      const last = Math.min(end, (index + 1) * entriesPerTable);
      let table = await this.#tables.load(extent, index);
      if (table === ABSENT) {
        await this.#addTable(extent, index);
        table = await this.#tables.load(extent, index);
      }
      table.fill(ZERO_ENTRY, first - index * entriesPerTable, last - index * entriesPerTable);
      this.#dirty.mark(extent, index, table, first - index * entriesPerTable, last - index * entriesPerTable);
      if (this.#dirty.crowded) await this.#dirty.write();
      first = last;
    }
  }

  /** Everything that was written is durable after. */
  async #barrier(): Promise<void> {
    for (const stream of this.#streams.values()) await stream.drain();
    for (const storage of this.#storages) await storage.flush();
  }

  async flush(): Promise<void> {
    for (const stream of this.#streams.values()) await stream.settled();
    await this.#dirty.write();
    for (const stream of this.#streams.values()) await stream.finish();
    for (const storage of this.#storages) await storage.flush();
  }
}
