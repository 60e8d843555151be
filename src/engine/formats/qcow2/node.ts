/** The open image as the node layer sees it: the parts put together. */
import { ImageError } from '../../error.js';
import type {
  AmendFacet,
  BackingReference,
  BitmapInfo,
  CheckFacet,
  Extent,
  FormatInfo,
  FormatNode,
  PackFacet,
  SnapshotFacet,
  SnapshotInfo,
  WriteTarget,
} from '../../node/driver.js';
import type { MaybePromise, Preallocation, Range, Storage } from '../../storage/storage.js';
import { GUEST_DATA, type Stage, tableStage, Writeback } from '../metadata-cache.js';
import type { PackedReader } from '../packed-reader.js';
import { amend } from './amend.js';
import { changeBacking } from './backing.js';
import { Bitmaps } from './bitmap-store.js';
import type { BitmapDirectory, StoredBitmap } from './bitmaps.js';
import { checker } from './check.js';
import { compressCluster, endOnSector, packedReader } from './compressed.js';
import { emptyByEntries, emptyCompact, emptyWhole } from './empty.js';
import { type Header, readHeader } from './header.js';
import type { Image } from './image.js';
import { describe } from './info.js';
import { Mapping } from './mapping.js';
import type { Refcounts } from './refcounts.js';
import { resize } from './resize.js';
import { type SnapshotList, snapshotEditor } from './snapshot-edit.js';
import { reach, readSnapshotL1, type Snapshot } from './snapshots.js';
import { Tables } from './tables.js';
import { Writer } from './write.js';
import { Zeroer } from './zero.js';

/** What only a writable image has. */
export interface WriteParts {
  readonly image: Image;
  readonly refcounts: Refcounts;
  readonly tables: Tables;
  readonly writer: Writer;
  readonly zeroer: Zeroer;
}

interface Parts {
  readonly image: Image;
  /** Undefined: opened for reading. */
  readonly refcounts: Refcounts | undefined;
  readonly snapshots: readonly Snapshot[];
  readonly bitmaps:
    | { readonly directory: BitmapDirectory; readonly list: readonly StoredBitmap[] }
    | undefined;
  readonly reloadL1: (file: Storage, header: Header) => Promise<Uint32Array>;
}

/**
 * The order in which metadata reaches the disk. Counts and guest data come before what refers to them, tables before
 * what points to them, and nothing is given back before its last reference is gone. Images with lazy refcounts are
 * written in this order too: their counts are never behind, so that their dirty bit need not be set.
 */
function stages(image: Image, refcounts: Refcounts, tables: Tables): readonly Stage[] {
  const blocks = tableStage('refcount blocks', [], refcounts.blocks);
  const refcountTable: Stage = {
    name: 'refcount table',
    after: [blocks],
    dirty: () => refcounts.tableDirty,
    write: () => refcounts.writeTable(),
  };
  const pointer: Stage = {
    name: 'header',
    after: [blocks, refcountTable],
    dirty: () => refcounts.tableMoved,
    write: () => refcounts.writePointer(),
  };
  const l2 = tableStage('L2 tables', [GUEST_DATA, blocks, refcountTable, pointer], image.l2);
  const l1: Stage = {
    name: 'L1 table',
    after: [GUEST_DATA, blocks, refcountTable, pointer, l2],
    dirty: () => tables.l1Dirty,
    write: () => tables.writeL1(),
  };
  const free: Stage = {
    name: 'freed clusters',
    after: [pointer, l2, l1],
    dirty: () => refcounts.hasDeferred,
    write: () => refcounts.freeDeferred(),
  };
  return [blocks, refcountTable, pointer, l2, l1, free];
}

export class Qcow2Node implements FormatNode {
  readonly unit: number;
  readonly children: ReadonlyMap<string, Storage>;
  readonly startsAsZero = true;
  readonly pack: PackFacet | undefined;
  readonly checker: CheckFacet;
  readonly amender: AmendFacet | undefined;
  readonly snapshots: SnapshotFacet;
  readonly #image: Image;
  readonly #parts: Parts;
  readonly #packed: PackedReader;
  readonly #mapping: Mapping;
  readonly #write: WriteParts | undefined;
  readonly bitmapStore: Bitmaps;
  #snapshots: readonly Snapshot[];

  constructor(parts: Parts) {
    const { image, refcounts, bitmaps } = parts;
    this.#image = image;
    this.#parts = parts;
    this.#snapshots = parts.snapshots;
    this.bitmapStore = new Bitmaps(image, refcounts, bitmaps);
    this.unit = image.geometry.subclusterSize;
    this.children = new Map(image.dataFile === undefined ? [] : [['data-file', image.dataFile]]);
    this.#packed = packedReader(image);
    this.#mapping = new Mapping(image, this.#packed, () => image.l1);
    if (refcounts !== undefined) {
      const tables = new Tables(image, refcounts);
      image.writeback = new Writeback(stages(image, refcounts, tables), () => image.barrier());
      refcounts.onFree = (at) => image.l2.drop(at);
      const prepare = bitmaps === undefined ? undefined : () => this.bitmapStore.markInUse();
      const writer = new Writer(image, tables, refcounts, this.#packed, prepare);
      this.#write = { image, refcounts, tables, writer, zeroer: new Zeroer(image, tables, writer) };
    }
    const write = this.#write;
    const snapshotList: SnapshotList = {
      get: () => this.#snapshots,
      set: (snapshots) => {
        this.#snapshots = snapshots;
      },
      contentReplaced: () => this.#packed.forget(),
    };
    // Compressed clusters are always in the image file itself, which an external data file forbids.
    this.pack =
      image.geometry.externalData || write === undefined
        ? undefined
        : {
            unit: image.geometry.clusterSize,
            compress: (unit) => compressCluster(image, unit),
            write: (at, packed) => {
              this.bitmapStore.touch(at, image.geometry.clusterSize);
              return write.writer.writePacked(at, packed);
            },
            end: () => endOnSector(image.file),
          };
    this.amender =
      write === undefined
        ? undefined
        : { amend: (options, context) => amend(write, snapshotList, options, context) };
    this.checker = checker({
      file: image.file,
      quiesce: () => this.flush(),
      reload: () => this.#reload(),
    });
    this.snapshots = {
      list: () => this.#snapshots.map(({ info }) => info),
      view: (snapshot) => this.#view(snapshot),
      // Clusters of an external data file have no refcounts: nothing can be kept of them.
      edit:
        write === undefined || image.geometry.externalData ? undefined : snapshotEditor(write, snapshotList),
    };
  }

  get size(): number {
    return this.#image.size;
  }
  get storesBitmaps(): boolean {
    return this.#image.header.version >= 3;
  }
  get backing(): BackingReference | undefined {
    return this.#image.header.backing;
  }

  /** For creation and tests: the parts that write. Throws where the image was opened for reading. */
  get writeParts(): WriteParts {
    if (this.#write === undefined) throw new ImageError('read-only', 'the image was opened for reading');
    return this.#write;
  }

  map(range: Range): MaybePromise<Extent> {
    return this.#mapping.map(range);
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    this.bitmapStore.touch(range.at, range.length);
    return this.writeParts.writer.prepareWrite(range);
  }

  zero(range: Range, { unmap }: { readonly unmap: boolean }): Promise<boolean> {
    this.bitmapStore.touch(range.at, range.length);
    return this.writeParts.zeroer.zero(range, unmap);
  }

  discard(range: Range): Promise<void> {
    this.bitmapStore.touch(range.at, range.length);
    return this.writeParts.zeroer.discard(range, 'guest');
  }

  async resize(
    size: number,
    options: { readonly preallocation: Preallocation; readonly zeroNew?: boolean },
  ): Promise<void> {
    await resize(this.writeParts, size, options, {
      snapshots: this.#snapshots.length > 0,
      bitmaps: () => this.bitmapStore.beforeResize(),
    });
  }

  async changeBacking(filename: string | undefined, format: string | undefined): Promise<void> {
    const { image } = this.writeParts;
    await this.flush();
    await changeBacking(image, filename, format);
  }

  async makeEmpty(): Promise<void> {
    const parts = this.writeParts;
    await this.flush();
    if (!(await emptyCompact(parts)) && !(await emptyWhole(parts))) return emptyByEntries(parts);
    await this.#reload();
  }

  async flush(): Promise<void> {
    if (this.#write === undefined) return;
    await this.#image.settled();
    if (!this.#image.dead) await this.#image.writeback.run();
  }

  async close(): Promise<void> {
    try {
      await this.flush();
      if (!this.#image.dead) await this.#storeBitmaps();
    } finally {
      await this.#image.dataFile?.close();
    }
  }

  async #storeBitmaps(): Promise<void> {
    try {
      await this.bitmapStore.store();
    } catch (error) {
      await this.#image.settled();
      if (!(error instanceof ImageError)) throw error;
      throw error.prefixed("Lost persistent bitmaps during inactivation of node '#block000': ");
    }
  }

  info(): FormatInfo {
    return describe(this.#image.header, this.#image.geometry, this.bitmapStore.list());
  }

  async bitmaps(): Promise<readonly BitmapInfo[]> {
    return this.bitmapStore.list();
  }

  /** Somebody has repaired the file: what is in memory is no longer true. */
  async #reload(): Promise<void> {
    const image = this.#image;
    image.header = await readHeader(image.file);
    image.l1 = await this.#parts.reloadL1(image.file, image.header);
    image.l2.clear();
    this.#packed.forget();
    await this.#parts.refcounts?.reload();
  }

  async #view(snapshot: SnapshotInfo): Promise<FormatNode> {
    const image = this.#image;
    const found = this.#snapshots.find(({ info }) => info.id === snapshot.id && info.name === snapshot.name);
    if (found === undefined) {
      throw new ImageError('not-found', `Can't find snapshot '${snapshot.name}'`);
    }
    const l1 = await readSnapshotL1(image, found);
    const size = Math.min(found.info.diskSize, reach(l1.length / 2, image.geometry));
    const mapping = new Mapping(image, this.#packed, () => l1);
    return {
      size,
      unit: this.unit,
      children: this.children,
      backing: this.backing,
      startsAsZero: false,
      map: (range) => mapping.map(range),
      // The node that the view belongs to closes what there is to close.
      close: async () => {},
      info: () => this.info(),
    };
  }
}
