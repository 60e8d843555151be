/**
 * Writing compressed extents. A grain is appended and never written again. An empty extent becomes a stream as the
 * specification has it (Virtual Disk Format 1.1, "Stream-Optimized Compressed Sparse Extents"): grains in the order in which
 * they come, after the grains of a table that table, at the end the directory and the footer, each behind its marker. One that
 * has grains and tables at its start, as the reference makes them, keeps that form.
 */
import { compressZlib } from '../../codec/deflate.js';
import { errnoText, ImageError } from '../../error.js';
import type { PackFacet, WriteTarget } from '../../node/driver.js';
import type { Range, Storage } from '../../storage/storage.js';
import type { DirtyTables } from './dirty.js';
import type { Hosted, SparseExtent } from './extent.js';
import {
  bytesOfWords,
  FLAG_REDUNDANT_TABLE,
  GD_AT_END,
  GrainMarker,
  HostedHeader,
  MARKER_END_OF_STREAM,
  MARKER_FOOTER,
  MARKER_GRAIN_DIRECTORY,
  MARKER_GRAIN_TABLE,
  MAX_SECTOR,
  Marker,
  SECTOR,
} from './layout.js';
import type { Space } from './space.js';
import { ABSENT, type GrainTables, grainAt, UNALLOCATED } from './tables.js';

/** Appended bytes are written in pieces of about this many. */
const WRITE_BEHIND = 1024 * 1024;
/** Entries of a directory that are written at a time. */
const DIRECTORY_PIECE = 8192;
/** Changed tables that are held before they are appended, where grains come in no order. */
const MAX_OPEN_TABLES = 4096;
/**
 * The directory of a stream that has begun and has no tables yet: far behind any file's end, where everything reads as
 * zeros.
 */
const NOWHERE = 2 ** 40;

const roundUp = (value: number, to: number) => Math.ceil(value / to) * to;

/** The reference says more than its error does, in a line of its own; here once an image. */
function allocated(extent: SparseExtent, within: number, say: (line: string) => void): ImageError {
  say('qemu-img: Could not write to allocated cluster for streamOptimized');
  return new ImageError('unsupported', errnoText('EIO'), {
    path: extent.storage.filename,
    offset: within,
    errno: 'EIO',
  });
}

function misaligned(extent: SparseExtent, within: number): ImageError {
  const context = { path: extent.storage.filename, offset: within, errno: 'EINVAL' };
  return new ImageError('invalid', errnoText('EINVAL'), context);
}

export class StreamWriter {
  readonly #extent: SparseExtent;
  readonly #tables: GrainTables;
  readonly #space: Space;
  readonly #inPlace: DirtyTables;
  readonly #say: (line: string) => void;
  /** True: the tables are where they are and are changed there. Undefined: not known yet. */
  #keepsForm: boolean | undefined;
  /** The header of the extent as it is or is to be, with the directory where it really is. */
  #header: Hosted;
  /** The header in the file's first sector says where the directory is, so that the end of the file is free. */
  #begun = false;
  #tail: Promise<unknown> = Promise.resolve();
  #sinks: Promise<unknown> = Promise.resolve();
  /** Appended bytes that are not in the file, and where they belong. */
  #pending: Uint8Array[] = [];
  #pendingBytes = 0;
  #pendingAt = 0;
  /** Changed tables that are to be appended, by index. */
  readonly #open = new Map<number, Uint32Array>();
  /** Appended tables that may not be in the file yet. */
  #appended: { readonly index: number; readonly table: Uint32Array; readonly sector: number }[] = [];
  #current = -1;

  constructor(
    extent: SparseExtent,
    tables: GrainTables,
    space: Space,
    inPlace: DirtyTables,
    say: (line: string) => void,
  ) {
    let said = false;
    this.#say = (line) => {
      if (!said) say(line);
      said = true;
    };
    this.#extent = extent;
    this.#tables = tables;
    this.#space = space;
    this.#inPlace = inPlace;
    this.#header = extent.hosted!.header;
  }

  /** Guest bytes as targets: whole grains that are not there yet, compressed on their way. */
  target(within: number, length: number, table: Uint32Array): WriteTarget {
    const { grain, size, entriesPerTable } = this.#extent;
    if (table !== ABSENT && grainAt(this.#extent, table, within - (within % grain)) >= 0) {
      throw allocated(this.#extent, within, this.#say);
    }
    const toEnd = within + length >= size;
    const covered = toEnd ? size - within : length - (length % grain);
    if (within % grain !== 0 || covered <= 0) throw misaligned(this.#extent, within);
    const span = grain * entriesPerTable;
    const tableEnd = (Math.floor(within / span) + 1) * span;
    const taken = Math.min(covered, tableEnd - within);
    const after = roundUp(taken, grain) - taken;
    return { storage: this.#sink, at: within, length: taken, fillBefore: 0, fillAfter: after };
  }

  /** Takes guest bytes by their offset in the extent. */
  readonly #sink: Storage = sinkStorage(
    () => this.#extent.storage,
    (within, from) => this.#writeGrains(within, from),
  );

  #writeGrains(within: number, from: Uint8Array): Promise<void> {
    const { grain } = this.#extent;
    const before = this.#sinks;
    const run = async () => {
      const packed: Promise<Uint8Array>[] = [];
      for (let at = 0; at < from.byteLength; at += grain) {
        packed.push(compressZlib(from.subarray(at, at + grain)));
      }
      const done = await Promise.all(packed);
      await before;
      for (const [number, stream] of done.entries()) await this.append(within + number * grain, stream);
    };
    const work = run();
    this.#sinks = Promise.allSettled([work, before]);
    return work;
  }

  /** The facet that convert uses: `at` is an offset in the extent, which is the whole image. */
  facet(ready: () => Promise<void> | undefined): PackFacet {
    return {
      unit: this.#extent.grain,
      always: true,
      compress: compressZlib,
      write: async (at, packed) => {
        await ready();
        await this.append(at, packed);
      },
    };
  }

  /** Appends a grain (an RFC 1950 stream) and enters it in its table. */
  append(within: number, packed: Uint8Array): Promise<void> {
    const run = this.#tail.then(() => this.#append(within, packed));
    this.#tail = run.catch(() => {});
    return run;
  }

  async #append(within: number, packed: Uint8Array): Promise<void> {
    const extent = this.#extent;
    const index = Math.floor(within / (extent.grain * extent.entriesPerTable));
    const entry = Math.floor(within / extent.grain) % extent.entriesPerTable;
    let table = this.#tables.cached(extent, index) ?? (await this.#tables.load(extent, index));
    if (table !== ABSENT && grainAt(extent, table, within) >= 0) throw allocated(extent, within, this.#say);
    if (!this.#begun) {
      await this.#begin();
      table = this.#tables.cached(extent, index) ?? (await this.#tables.load(extent, index));
    }
    if (!this.#keepsForm) {
      if (this.#current !== index && this.#current >= 0) this.#appendTable(this.#current);
      if (this.#open.size >= MAX_OPEN_TABLES) this.#appendTables();
      this.#current = index;
      if (table === ABSENT) table = new Uint32Array(extent.entriesPerTable);
    } else if (table === ABSENT) {
      throw new ImageError('corrupt', errnoText('EIO'), { path: extent.storage.filename, errno: 'EIO' });
    }
    const unit = Buffer.allocUnsafeSlow(roundUp(GrainMarker.size + packed.byteLength, SECTOR));
    GrainMarker.encodeInto({ lba: BigInt(within / SECTOR), size: packed.byteLength }, unit);
    unit.set(packed, GrainMarker.size);
    unit.fill(0, GrainMarker.size + packed.byteLength);
    table[entry] = this.#put(unit);
    if (this.#keepsForm) {
      this.#inPlace.mark(extent, index, table, entry, entry + 1);
      if (this.#inPlace.crowded) await this.#inPlace.write();
    } else {
      this.#open.set(index, table);
      this.#tables.pin(extent, index, table);
    }
    if (this.#pendingBytes >= WRITE_BEHIND) await this.drain();
  }

  /** Appends whole sectors to the file's end; gives the sector. */
  #put(bytes: Uint8Array): number {
    const at = this.#space.take(this.#extent, bytes.byteLength, SECTOR);
    if (this.#pendingBytes === 0) this.#pendingAt = at;
    else if (at !== this.#pendingAt + this.#pendingBytes) {
      throw new ImageError('internal', 'somebody else appended to the stream');
    }
    this.#pending.push(bytes);
    this.#pendingBytes += bytes.byteLength;
    return at / SECTOR;
  }

  #marker(type: number, sectors: number): Uint8Array {
    const out = Buffer.alloc(SECTOR);
    Marker.encodeInto({ val: BigInt(sectors), size: 0, type }, out);
    return out;
  }

  #appendTable(index: number): void {
    const table = this.#open.get(index);
    if (table === undefined) return;
    const raw = Buffer.alloc(roundUp(table.byteLength, SECTOR));
    raw.set(bytesOfWords(table));
    this.#put(this.#marker(MARKER_GRAIN_TABLE, raw.byteLength / SECTOR));
    const sector = this.#put(raw);
    this.#open.delete(index);
    this.#tables.move(this.#extent, index, sector);
    this.#appended.push({ index, table, sector });
  }

  #appendTables(): void {
    for (const index of [...this.#open.keys()].sort((a, b) => a - b)) this.#appendTable(index);
  }

  #draining: Promise<void> = Promise.resolve();

  /** What was appended is in the file. */
  drain(): Promise<void> {
    const run = this.#draining.then(() => this.#drain());
    this.#draining = run.catch(() => {});
    return run;
  }

  async #drain(): Promise<void> {
    if (this.#pendingBytes > 0) {
      const [pieces, at] = [this.#pending, this.#pendingAt];
      const count = pieces.length;
      const whole = Buffer.concat(pieces);
      await this.#extent.storage.write(at, whole);
      // More may have been appended meanwhile.
      this.#pending = this.#pending.slice(count);
      this.#pendingBytes -= whole.byteLength;
      this.#pendingAt = at + whole.byteLength;
    }
    const written = this.#pendingBytes === 0 ? this.#appended.length : 0;
    for (const { index, table, sector } of this.#appended.splice(0, written)) {
      if (!this.#open.has(index)) this.#tables.unpin(this.#extent, index, table, sector);
    }
  }

  /** True where what is at that sector may not be in the file yet. */
  holds(sector: number): boolean {
    return this.#pendingBytes > 0 && sector * SECTOR >= this.#pendingAt;
  }

  async settled(): Promise<void> {
    await this.#sinks;
    await this.#tail;
  }

  /** Nothing but metadata is in the file: the form may be chosen. */
  async #isEmpty(): Promise<boolean> {
    const extent = this.#extent;
    if (extent.storage.size > extent.metadataEnd) return false;
    if (!extent.zeroedGrains) return true;
    for (let index = 0; index < extent.directoryEntries; index++) {
      const table = this.#tables.cached(extent, index) ?? (await this.#tables.load(extent, index));
      if (table.some((entry) => entry !== 0)) return false;
    }
    return true;
  }

  /** The file's end becomes free to be appended to: whatever happens from now on, the image reads as it did. */
  async #begin(): Promise<void> {
    const extent = this.#extent;
    const { storage } = extent;
    if (this.#keepsForm === undefined) {
      const { atEnd, header } = extent.hosted!;
      if (!extent.markers) {
        throw new ImageError('unsupported', 'Compressed extents without markers cannot be written', {
          path: storage.filename,
          errno: 'ENOTSUP',
        });
      }
      const plain = atEnd || (header.flags & FLAG_REDUNDANT_TABLE) === 0;
      if (!plain && (await this.#isEmpty())) {
        await this.#startEmpty();
        this.#keepsForm = false;
        this.#begun = true;
        return;
      }
      this.#keepsForm = !plain;
    }
    if (!this.#keepsForm) await this.#writeHeader(this.#header);
    this.#begun = true;
  }

  /** The tables at the start of an empty extent go: a stream has them behind its grains. */
  async #startEmpty(): Promise<void> {
    const extent = this.#extent;
    const { storage } = extent;
    const old = this.#header;
    const grainSectors = Number(old.grainSize);
    const used = Math.max(1, Number(old.descriptorOffset + old.descriptorSize));
    const overHead = roundUp(used, grainSectors);
    if (storage.size < overHead * SECTOR) await storage.truncate(overHead * SECTOR);
    this.#header = {
      ...old,
      flags: (old.flags & ~FLAG_REDUNDANT_TABLE) >>> 0,
      rgdOffset: 0n,
      gdOffset: BigInt(NOWHERE),
      overHead: BigInt(overHead),
    };
    await this.#writeHeader(this.#header);
    if (storage.size > overHead * SECTOR) await storage.truncate(overHead * SECTOR);
    extent.directoryAt = NOWHERE * SECTOR;
    extent.backupAt = undefined;
    this.#tables.forget(extent);
    this.#space.restart(extent, overHead * SECTOR);
  }

  async #writeHeader(header: Hosted): Promise<void> {
    const { storage } = this.#extent;
    await storage.flush();
    await storage.write(0, encodeHeader(header));
    await storage.flush();
  }

  /** Tables, directory and footer, all durable; then the header, which makes it a stream. */
  async finish(): Promise<void> {
    const run = this.#tail.then(() => this.#finish());
    this.#tail = run.catch(() => {});
    return run;
  }

  async #finish(): Promise<void> {
    if (!this.#begun || this.#keepsForm !== false) {
      await this.drain();
      return;
    }
    const extent = this.#extent;
    this.#appendTables();
    this.#current = -1;
    const entries = extent.directoryEntries;
    this.#put(this.#marker(MARKER_GRAIN_DIRECTORY, Math.ceil((entries * 4) / SECTOR)));
    let directory = -1;
    for (let first = 0; first < entries; first += DIRECTORY_PIECE) {
      const count = Math.min(DIRECTORY_PIECE, entries - first);
      const words = new Uint32Array(roundUp(count, SECTOR / 4));
      for (let n = 0; n < count; n++) {
        const sector =
          this.#tables.movedTo(extent, first + n) ?? (await this.#tables.sector(extent, first + n));
        words[n] = sector === UNALLOCATED || sector < 0 ? 0 : sector;
      }
      const at = this.#put(bytesOfWords(words));
      if (directory < 0) directory = at;
      if (this.#pendingBytes >= WRITE_BEHIND) await this.drain();
    }
    if (directory < 0 || directory > MAX_SECTOR)
      throw new ImageError('internal', 'a stream without directory');
    this.#header = { ...this.#header, gdOffset: BigInt(directory) };
    this.#put(this.#marker(MARKER_FOOTER, 1));
    const footer = Buffer.alloc(SECTOR);
    footer.set(encodeHeader(this.#header));
    this.#put(footer);
    this.#put(this.#marker(MARKER_END_OF_STREAM, 0));
    await this.drain();
    await this.#writeHeader({ ...this.#header, gdOffset: GD_AT_END });
    this.#begun = false;
  }
}

function encodeHeader(header: Hosted): Uint8Array {
  return HostedHeader.encode(header);
}

/** What the access path writes to in place of the file; nothing else is asked of it. */
function sinkStorage(file: () => Storage, write: (at: number, from: Uint8Array) => Promise<void>): Storage {
  const never = (): never => {
    throw new ImageError('internal', 'compressed grains are only written');
  };
  return {
    get filename() {
      return file().filename;
    },
    driver: 'vmdk',
    writable: true,
    alignment: 1,
    size: 0,
    allocated: async () => undefined,
    read: async () => never(),
    write,
    zero: async (_range: Range) => never(),
    discard: async (_range: Range) => never(),
    truncate: async () => never(),
    flush: async () => {},
    extent: () => never(),
    close: async () => {},
  };
}
