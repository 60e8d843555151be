/** VMDK, reading: every subformat, from a descriptor, a sparse extent, or a stream. */
import type { Extent, FormatDriver, FormatInfo, FormatNode, OpenContext } from '../../node/driver.js';
import type { MaybePromise, Range, Storage } from '../../storage/storage.js';
import { VmdkChecker } from './check.js';
import type { SparseExtent, VmdkExtent } from './extent.js';
import { extentIndex, vmdkInfo } from './info.js';
import { SECTOR } from './layout.js';
import { openImage, type VmdkImage } from './open.js';
import { readPacked } from './packed.js';
import { probe } from './probe.js';
import { ABSENT, GrainTables, grainRun, nextGrainSector, UNALLOCATED, ZEROED } from './tables.js';

class VmdkNode implements FormatNode {
  readonly size: number;
  readonly unit: number;
  readonly children: ReadonlyMap<string, Storage>;
  readonly backing;
  readonly contentId: number;
  readonly startsAsZero = true;
  readonly checker: VmdkChecker;
  readonly #image: VmdkImage;
  readonly #tables = new GrainTables();

  constructor(image: VmdkImage) {
    this.#image = image;
    this.size = image.size;
    this.children = image.children;
    this.contentId = image.cid;
    this.unit = image.extents.reduce(
      (unit, extent) => Math.max(unit, extent.kind === 'sparse' ? extent.grain : 1),
      1,
    );
    this.backing =
      image.parentName === undefined
        ? undefined
        : { filename: image.parentName, format: 'vmdk', contentId: image.parentCid };
    this.checker = new VmdkChecker(image, this.#tables);
  }

  map(range: Range): MaybePromise<Extent> {
    const extent: VmdkExtent = this.#image.extents[extentIndex(this.#image.extents, range.at)]!;
    const within = range.at - extent.at;
    const length = Math.min(range.length, extent.size - within);
    switch (extent.kind) {
      case 'flat':
        return { kind: 'data', length, storage: extent.storage, at: extent.start + within };
      case 'zero':
        return { kind: 'zero', length };
      case 'sparse': {
        const index = Math.floor(within / (extent.grain * extent.entriesPerTable));
        const table = this.#tables.cached(extent, index);
        if (table !== undefined) return this.#mapSparse(extent, index, table, within, length);
        return this.#tables
          .load(extent, index)
          .then((loaded) => this.#mapSparse(extent, index, loaded, within, length));
      }
    }
  }

  #mapSparse(
    extent: SparseExtent,
    index: number,
    table: Uint32Array,
    within: number,
    length: number,
  ): Extent {
    const run = grainRun(extent, table, within, length);
    if (run.sector === UNALLOCATED) {
      return { kind: 'backing', length: this.#absentRun(extent, index, table, run.length, length) };
    }
    if (run.sector === ZEROED) return { kind: 'zero', length: run.length };
    const { sector, skip } = run;
    if (!extent.compressed) {
      return { kind: 'data', length: run.length, storage: extent.storage, at: sector * SECTOR + skip };
    }
    const next = nextGrainSector(extent, table, within);
    return {
      kind: 'packed',
      length: run.length,
      read: (into) => readPacked(extent, sector, next, skip, into),
    };
  }

  /** A run of holes goes on through the tables that are not there, as far as the directory is at hand. */
  #absentRun(extent: SparseExtent, index: number, table: Uint32Array, run: number, length: number): number {
    if (table !== ABSENT) return run;
    const span = extent.grain * extent.entriesPerTable;
    let total = run;
    for (let next = index + 1; total < length && next < extent.directoryEntries; next++) {
      if (this.#tables.cached(extent, next) !== ABSENT) break;
      total += span;
    }
    return Math.min(total, length);
  }

  info(): FormatInfo {
    return vmdkInfo(this.#image);
  }

  async close(): Promise<void> {
    for (const storage of this.children.values()) await storage.close();
  }
}

export const vmdk: FormatDriver = {
  name: 'vmdk',
  probe,
  openOptions: [],
  async open(context: OpenContext): Promise<FormatNode> {
    return new VmdkNode(await openImage(context));
  },
  createOptions: [],
  supportsBacking: true,
};
