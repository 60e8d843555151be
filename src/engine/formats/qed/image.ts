/** What the parts of one open QED image share: its file, its header, its tables in memory, and where the file ends. */
import { errnoText, ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import { type CachedTable, GUEST_DATA, TableCache, tableStage, Writeback } from '../metadata-cache.js';
import { Feature, type Geometry, loadPage, QedHeader, SECTOR, storePage } from './layout.js';

export type Header = ReturnType<typeof QedHeader.decode>;
export type Page = CachedTable<Uint32Array>;

/** Pages in memory, in bytes: of L2 tables enough for 256 GiB of guest at the defaults. */
const L1_CACHE_BYTES = 8 << 20;
const L2_CACHE_BYTES = 32 << 20;

export class QedImage {
  readonly file: Storage;
  readonly header: Header;
  readonly geometry: Geometry;
  readonly writable: boolean;
  readonly l1: TableCache<Uint32Array>;
  readonly l2: TableCache<Uint32Array>;
  readonly writeback: Writeback;
  readonly l1At: number;
  /** Bytes of clusters before the first regular one. */
  readonly headerBytes: number;
  /** Guest size in bytes. */
  size: number;
  backingName: string | undefined;
  /** Where the next cluster goes; a last cluster that is not whole does not count. */
  end: number;

  constructor(of: { file: Storage; header: Header; geometry: Geometry; writable: boolean }) {
    const { file, header, geometry } = of;
    this.file = file;
    this.header = header;
    this.geometry = geometry;
    this.writable = of.writable;
    this.l1At = Number(header.l1TableOffset);
    this.headerBytes = header.headerSize * geometry.clusterSize;
    this.size = Number(header.imageSize);
    this.end = wholeClusters(file.size, geometry.clusterSize);
    const cache = (limit: number, load: string, update: string) =>
      new TableCache<Uint32Array>(file, geometry.pageBytes, limit, {
        fromDisk: loadPage,
        toDisk: storePage,
        events: { load, update },
      });
    this.l1 = cache(L1_CACHE_BYTES, 'read_aio', 'l1_update');
    this.l2 = cache(L2_CACHE_BYTES, 'l2_load', 'l2_update');
    // Both after what they point to: a new L2 table is zeros in the file before it is linked, so that it need not wait
    // for its entries. So the image is consistent at every instant, and the need-check bit need not be set.
    const tables = tableStage('L2 tables', [GUEST_DATA], this.l2);
    const directory = tableStage('L1 table', [GUEST_DATA], this.l1);
    this.writeback = new Writeback([tables, directory], () => file.flush());
  }

  /** "Offsets must be within the image file size and must be cluster_size aligned." */
  validCluster(at: number): boolean {
    return at % this.geometry.clusterSize === 0 && at >= this.headerBytes && at < this.end;
  }

  validTable(at: number): boolean {
    return this.validCluster(at) && at + this.geometry.tableBytes <= this.end;
  }

  damaged(at: number): ImageError {
    const context = { path: this.file.filename, offset: at, errno: 'EINVAL' };
    return new ImageError('corrupt', errnoText('EINVAL'), context);
  }

  get needsCheck(): boolean {
    return (this.header.features & Feature.needCheck) !== 0n;
  }

  /** Rewrites the header's fields in place, one sector; what is behind them stays. */
  async writeHeader(): Promise<void> {
    await this.file.write(0, QedHeader.encode(this.header));
  }

  /** What has to come first where tables are about to be changed: a writeback that is due, or one that runs. */
  due(): Promise<void> | undefined {
    const { writeback } = this;
    if (writeback.running !== undefined) return writeback.running;
    return this.l2.crowded || this.l1.crowded ? writeback.run() : undefined;
  }

  /** `count` clusters behind the last one. */
  allocate(count: number): number {
    const at = this.end;
    this.end += count * this.geometry.clusterSize;
    return at;
  }

  /** Takes back what was allocated last; what was allocated before something else is leaked. */
  giveBack(at: number, count: number): void {
    if (at + count * this.geometry.clusterSize === this.end) this.end = at;
  }
}

/**
 * "If the file size is not a multiple, extra information after the last cluster may not be preserved." The reference counts
 * a file in sectors: what a last one lacks reads as zeros.
 */
export function wholeClusters(bytes: number, clusterSize: number): number {
  const inSectors = Math.ceil(bytes / SECTOR) * SECTOR;
  return inSectors - (inSectors % clusterSize);
}
