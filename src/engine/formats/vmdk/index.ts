/** VMDK: every subformat, from a descriptor, a sparse extent, or a stream. */
import { ImageError } from '../../error.js';
import type {
  Extent,
  FormatDriver,
  FormatInfo,
  FormatNode,
  OpenContext,
  PackFacet,
  WriteTarget,
} from '../../node/driver.js';
import type { MaybePromise, Range, Storage } from '../../storage/storage.js';
import { VmdkChecker } from './check.js';
import { checkCreate, createVmdk, roundSize } from './create.js';
import type { SparseExtent, VmdkExtent } from './extent.js';
import { extentIndex, vmdkInfo } from './info.js';
import { SECTOR } from './layout.js';
import { openImage, type VmdkImage } from './open.js';
import { createOptions } from './options.js';
import { readPacked } from './packed.js';
import { probe } from './probe.js';
import { ABSENT, GrainTables, grainRun, nextGrainSector, UNALLOCATED, ZEROED } from './tables.js';
import { Writer } from './write.js';

class VmdkNode implements FormatNode {
  readonly size: number;
  readonly unit: number;
  readonly children: ReadonlyMap<string, Storage>;
  readonly backing;
  readonly pack: PackFacet | undefined;
  readonly startsAsZero = true;
  /** Nothing can be repaired: an image that is opened for that has no checker. */
  readonly checker: VmdkChecker | undefined;
  readonly #image: VmdkImage;
  readonly #tables = new GrainTables();
  readonly #writer: Writer | undefined;

  constructor(image: VmdkImage, writable: boolean, say: (line: string) => void) {
    this.#image = image;
    this.size = image.size;
    this.children = image.children;
    this.unit = image.extents.reduce(
      (unit, extent) => Math.max(unit, extent.kind === 'sparse' ? extent.grain : 1),
      1,
    );
    this.backing =
      image.parentName === undefined
        ? undefined
        : { filename: image.parentName, format: 'vmdk', contentId: image.parentCid };
    this.checker = writable ? undefined : new VmdkChecker(image, this.#tables);
    this.#writer = writable ? new Writer(image, this.#tables, this.unit, say) : undefined;
    this.pack = this.#writer === undefined ? undefined : packFacet(image, this.#writer, this.unit);
  }

  get contentId(): number {
    return this.#image.cid;
  }

  get #writing(): Writer {
    if (this.#writer === undefined) throw new ImageError('read-only', 'the image was opened for reading');
    return this.#writer;
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    return this.#writing.prepareWrite(range);
  }

  zero(range: Range, { unmap }: { readonly unmap: boolean }): Promise<boolean> {
    return this.#writing.zero(range, unmap);
  }

  async flush(): Promise<void> {
    await this.#writer?.flush();
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
      read: async (into) => {
        const stream = this.#writer?.stream(extent);
        if (stream?.holds(sector)) await stream.drain();
        await readPacked(extent, sector, next, skip, into);
      },
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
    try {
      await this.flush();
    } finally {
      for (const storage of this.children.values()) await storage.close();
    }
  }
}

/** A lone compressed extent takes compressed grains, and nothing else; other sparse images take the option and ignore it. */
function packFacet(image: VmdkImage, writer: Writer, unit: number): PackFacet | undefined {
  const [first] = image.extents;
  if (first?.kind === 'sparse' && first.compressed && image.extents.length === 1) {
    return writer.stream(first)!.facet(() => writer.ready());
  }
  if (!image.extents.some((extent) => extent.kind === 'sparse')) return undefined;
  return {
    unit,
    compress: async () => undefined,
    write: async () => {
      throw new ImageError('internal', 'nothing was compressed');
    },
  };
}

export const vmdk: FormatDriver = {
  name: 'vmdk',
  probe,
  openOptions: [],
  async open(context: OpenContext): Promise<FormatNode> {
    return new VmdkNode(await openImage(context), context.writable, (line) => context.say?.(line));
  },
  createOptions,
  checkCreate,
  create: createVmdk,
  roundSize,
  compresses: true,
  supportsBacking: true,
};
