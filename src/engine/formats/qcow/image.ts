/** What the parts of one open qcow image share: its file, its tables in memory, and where the file ends. */
import { errnoText, ImageError } from '../../error.js';
import { ForwardStorage } from '../../node/filters/forward.js';
import type { Storage } from '../../storage/storage.js';
import { type CachedTable, GUEST_DATA, TableCache, tableStage, Writeback } from '../metadata-cache.js';
import { ENTRY_BYTES, type Geometry, L1_PAGE_BYTES, loadPage, type QcowHeader, storePage } from './layout.js';

export type Header = ReturnType<typeof QcowHeader.decode>;
export type Table = CachedTable<Uint32Array>;

/** Tables in memory, in bytes: of L2 tables enough for 16 GiB of guest at the defaults. */
const L1_CACHE_BYTES = 8 << 20;
const L2_CACHE_BYTES = 32 << 20;

/** The L1 table may be followed by anything at once: nothing past its end is read or written with its pages. */
class L1Storage extends ForwardStorage {
  readonly #end: number;

  constructor(file: Storage, end: number) {
    super(file.driver, file.filename, 'file', file);
    this.#end = end;
  }

  override read(at: number, into: Uint8Array): Promise<void> {
    const there = Math.max(0, Math.min(into.byteLength, this.#end - at));
    into.fill(0, there);
    return this.below.read(at, into.subarray(0, there));
  }

  override write(at: number, from: Uint8Array): Promise<void> {
    return this.below.write(at, from.subarray(0, this.#end - at));
  }
}

export class QcowImage {
  readonly file: Storage;
  readonly header: Header;
  readonly geometry: Geometry;
  readonly writable: boolean;
  readonly l1: TableCache<Uint32Array>;
  readonly l2: TableCache<Uint32Array>;
  readonly writeback: Writeback;
  readonly l1At: number;
  readonly l1Bytes: number;
  /** Guest size in bytes: whole sectors. */
  readonly size: number;
  readonly backingName: string | undefined;
  /** No byte from here on is allocated. */
  #end: number;

  constructor(of: {
    file: Storage;
    header: Header;
    geometry: Geometry;
    writable: boolean;
    size: number;
    backingName: string | undefined;
  }) {
    const { file, geometry } = of;
    this.file = file;
    this.header = of.header;
    this.geometry = geometry;
    this.writable = of.writable;
    this.size = of.size;
    this.backingName = of.backingName;
    this.l1At = Number(of.header.l1TableOffset);
    this.l1Bytes = geometry.l1Entries * ENTRY_BYTES;
    this.#end = file.size;
    const cache = (storage: Storage, bytes: number, limit: number, load: string, update: string) =>
      new TableCache<Uint32Array>(storage, bytes, limit, {
        fromDisk: loadPage,
        toDisk: storePage,
        events: { load, update },
      });
    const l1File = new L1Storage(file, this.l1At + this.l1Bytes);
    this.l1 = cache(l1File, L1_PAGE_BYTES, L1_CACHE_BYTES, 'read', 'l1_update');
    this.l2 = cache(file, geometry.l2Bytes, L2_CACHE_BYTES, 'l2_load', 'l2_update');
    const tables = tableStage('L2 tables', [GUEST_DATA], this.l2);
    const directory = tableStage('L1 table', [GUEST_DATA, tables], this.l1);
    this.writeback = new Writeback([tables, directory], () => file.flush());
  }

  /** What the reference says where a table or a cluster cannot be had. */
  damaged(at: number): ImageError {
    const context = { path: this.file.filename, offset: at, errno: 'EIO' };
    return new ImageError('corrupt', errnoText('EIO'), context);
  }

  /** The page of the L1 table that has the entry. */
  l1Page(index: number): Table | Promise<void> {
    const first = Math.floor((index * ENTRY_BYTES) / L1_PAGE_BYTES) * L1_PAGE_BYTES;
    return this.l1.get(this.l1At + first);
  }

  /** Whether an L2 table may be there: anywhere in what a file can be, as for the reference. */
  validTable(at: number): boolean {
    return at + this.geometry.l2Bytes <= Number.MAX_SAFE_INTEGER;
  }

  /** Data clusters start at a sector. */
  validCluster(at: number): boolean {
    return at % 512 === 0 && at + this.geometry.clusterSize <= Number.MAX_SAFE_INTEGER;
  }

  /** What has to come first where tables are about to be changed: a writeback that is due, or one that runs. */
  due(): Promise<void> | undefined {
    const { writeback } = this;
    if (writeback.running !== undefined) return writeback.running;
    return this.l2.crowded || this.l1.crowded ? writeback.run() : undefined;
  }

  /** `length` bytes behind everything, at a multiple of `alignment`. */
  allocate(length: number, alignment: number): number {
    const at = Math.ceil(Math.max(this.#end, this.file.size) / alignment) * alignment;
    this.#end = at + length;
    return at;
  }

  /** Takes back what was allocated last, where nothing of it is in the file. */
  giveBack(at: number, length: number): void {
    if (at + length === this.#end) this.#end = at;
  }

  /** All that lay behind was let go. */
  truncated(): void {
    this.#end = this.file.size;
  }
}
