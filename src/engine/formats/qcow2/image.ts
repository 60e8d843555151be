/** What all parts of one open qcow2 image share: its storages, its header, and how damage is handled. */
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import { type CachedTable, TableCache, Writeback } from '../metadata-cache.js';
import type { Header } from './header.js';
import { type Geometry, headerOffset, Incompatible, loadTable, storeTable } from './layout.js';
import { Overlaps } from './overlap.js';
import { type Runtime, readRuntime, type Structure } from './runtime.js';

/** L2 tables in memory, in bytes: maps 256 GiB of guest at the default cluster size. */
const L2_CACHE_BYTES = 32 << 20;

/** Refcount blocks in memory, in bytes: counts for 512 GiB of host file at the defaults. */
const REFCOUNT_CACHE_BYTES = 16 << 20;

export type L2Table = CachedTable<Uint32Array>;

/** As C's `%#x`: zero has no prefix. */
export function hex(value: number): string {
  return value === 0 ? '0' : `0x${value.toString(16)}`;
}

export class Image {
  readonly file: Storage;
  /** The external data file, where the image has one (and it was opened). */
  readonly dataFile: Storage | undefined;
  /** Where guest clusters are: the data file or the image itself. */
  readonly data: Storage;
  header: Header;
  /** Changes where the width of the refcounts does, and in nothing else. */
  geometry: Geometry;
  readonly writable: boolean;
  readonly l2: TableCache<Uint32Array>;
  /** A line for the user, as it is. */
  readonly say: (line: string) => void;
  /** The active L1 table, host order. */
  l1: Uint32Array;
  /** Guest size in bytes. */
  size: number;
  /** Of an image opened for reading it has no stages. */
  writeback: Writeback = new Writeback([], async () => {});
  snapshotTableBytes = 0;
  readonly refcountCacheBytes: number;
  readonly runtime: Runtime;
  readonly overlaps: Overlaps;
  /** Set after damage was met on a writable image: nothing more is written. */
  #dead = false;
  #marking: Promise<void> | undefined;
  #told = false;

  constructor(of: {
    file: Storage;
    dataFile: Storage | undefined;
    header: Header;
    geometry: Geometry;
    writable: boolean;
    l1: Uint32Array;
    size: number;
    runtime?: Runtime | undefined;
    say?: ((line: string) => void) | undefined;
  }) {
    this.file = of.file;
    this.dataFile = of.dataFile;
    this.data = of.dataFile ?? of.file;
    this.header = of.header;
    this.geometry = of.geometry;
    this.writable = of.writable;
    this.l1 = of.l1;
    this.size = of.size;
    this.say = of.say ?? (() => {});
    this.overlaps = new Overlaps(this);
    this.runtime = of.runtime ?? readRuntime({}, of.header, of.geometry);
    this.refcountCacheBytes = this.runtime.refcountCacheBytes ?? REFCOUNT_CACHE_BYTES;
    this.l2 = new TableCache<Uint32Array>(
      of.file,
      of.geometry.clusterSize,
      this.runtime.l2CacheBytes ?? L2_CACHE_BYTES,
      {
        fromDisk: (bytes) => loadTable(new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4)),
        toDisk: (table, from, to) => storeTable(table, from / 4, to / 4),
        events: { load: 'l2_load', update: 'l2_update' },
      },
    );
  }

  get dead(): boolean {
    return this.#dead;
  }

  /**
   * The error for damage that was met on the way; what it is is said once. A writable image is marked corrupt (version 3) and
   * not written again, as QEMU does.
   */
  corrupt(what: string): ImageError {
    if (this.writable) this.#die(what);
    else
      this.#tell(`qcow2: Image is corrupt: ${what}; further non-fatal corruption events will be suppressed`);
    return new ImageError('corrupt', 'Input/output error', { errno: 'EIO', path: this.file.filename });
  }

  #die(what: string): void {
    if (this.#dead) return;
    this.#dead = true;
    this.#told = false;
    this.#tell(`qcow2: Marking image as corrupt: ${what}; further corruption events will be suppressed`);
    if (this.header.version < 3) return;
    this.header.incompatible |= Incompatible.corrupt;
    this.#marking = this.writeField64('incompatible', this.header.incompatible).catch(() => {});
  }

  #tell(line: string): void {
    if (!this.#told) this.say(line);
    this.#told = true;
  }

  /** Throws where a table of this kind lies over other metadata. */
  guardMetadata(at: number, length: number, own: Structure | undefined): void {
    this.#refuse(this.overlaps.byMetadata(at, length, own));
  }

  /** Throws where guest data would go over metadata: an entry of an L2 table lies. */
  guardData(at: number, length: number): void {
    this.#refuse(this.overlaps.byData(at, length));
  }

  #refuse(overlapped: string | undefined): void {
    if (overlapped === undefined) return;
    throw this.corrupt(`Preventing invalid write on metadata (overlaps with ${overlapped})`);
  }

  /** Throws where the image was found damaged before. */
  checkAlive(): void {
    if (this.#dead) throw new ImageError('corrupt', 'No medium found', { path: this.file.filename });
  }

  /** Waits for the corrupt mark, if one is being written. */
  async settled(): Promise<void> {
    await this.#marking;
  }

  /**
   * While refcounts and copied flags are on their way to a new agreement: whoever opens the image after a crash counts them
   * anew first. Version 2 has no such mark. Durable when it returns.
   */
  async markDirty(dirty: boolean): Promise<void> {
    const { header } = this;
    if (header.version < 3 || dirty === ((header.incompatible & Incompatible.dirty) !== 0n)) return;
    const { incompatible } = header;
    const bits = dirty ? incompatible | Incompatible.dirty : incompatible & ~Incompatible.dirty;
    await this.writeField64('incompatible', bits);
    header.incompatible = bits;
    await this.file.flush();
  }

  /** Writes one 64-bit header field in place. */
  async writeField64(field: keyof typeof headerOffset, value: bigint): Promise<void> {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, value);
    await this.file.write(headerOffset[field], bytes);
  }

  /** Makes all that was written to the image's storages durable. */
  async barrier(): Promise<void> {
    if (this.dataFile !== undefined) await Promise.all([this.dataFile.flush(), this.file.flush()]);
    else await this.file.flush();
  }
}
