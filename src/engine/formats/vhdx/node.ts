/** An open VHDX image. */
import type { Extent, FormatInfo, FormatNode, WriteTarget } from '../../node/driver.js';
import type { DataRun, MaybePromise, Range, Storage } from '../../storage/storage.js';
import type { Bat } from './bat.js';
import type { BatParts } from './check.js';
import { VhdxChecker } from './check.js';
import { BlockState, chunkRatio, entryOfBlock, SECTOR } from './layout.js';
import { unusable, type Writer } from './write.js';

/** How a run of blocks reads. */
type Kind = 'zero' | 'data' | 'unusable';

function kindOf(state: number): Kind {
  switch (state) {
    case BlockState.fullyPresent:
      return 'data';
    case BlockState.notPresent:
    case BlockState.undefined:
    case BlockState.zero:
    case BlockState.unmapped:
    case BlockState.unmappedDraft:
      return 'zero';
    default:
      // Partly a parent's, which this image does not have; or no state at all.
      return 'unusable';
  }
}

export class VhdxNode implements FormatNode {
  readonly size: number;
  /** Blocks are large, and what is not written of a new one reads as zeros by itself: writers may share one. */
  readonly unit = SECTOR;
  readonly children: ReadonlyMap<string, Storage> = new Map();
  readonly startsAsZero = true;
  readonly opaque = true;
  readonly dataHoles = true;
  readonly checker: VhdxChecker;
  readonly #file: Storage;
  readonly #bat: Bat;
  readonly #blockSize: number;
  readonly #ratio: number;
  readonly #writer: Writer | undefined;

  constructor(parts: BatParts, bat: Bat, writer: Writer | undefined, replayed: boolean) {
    this.size = parts.metadata.size;
    this.checker = new VhdxChecker(parts, replayed);
    this.#file = parts.file;
    this.#bat = bat;
    this.#blockSize = parts.metadata.blockSize;
    this.#ratio = chunkRatio(this.#blockSize);
    this.#writer = writer;
  }

  map(range: Range): MaybePromise<Extent> {
    const found = this.locate(range);
    return found instanceof Promise ? found.then((extent) => this.#holes(extent)) : this.#holes(found);
  }

  /** Blocks are larger than what is written of them: the host knows the rest. */
  #holes(extent: Extent): MaybePromise<Extent> {
    if (extent.kind !== 'data') return extent;
    const { storage, at, length } = extent;
    const settled = (run: DataRun): Extent =>
      run.data ? { ...extent, length: run.length } : { kind: 'zero', length: run.length, storage, at };
    const run = storage.extent({ at, length });
    return run instanceof Promise ? run.then(settled) : settled(run);
  }

  locate({ at, length }: Range): MaybePromise<Extent> {
    const block = Math.floor(at / this.#blockSize);
    const waits = this.#bat.need(entryOfBlock(block, this.#ratio));
    return waits === undefined ? this.#located(block, at, length) : this.#later(block, at, length, waits);
  }

  async #later(block: number, at: number, length: number, waits: Promise<void>): Promise<Extent> {
    for (let pending: Promise<void> | undefined = waits; pending !== undefined; ) {
      await pending;
      pending = this.#bat.need(entryOfBlock(block, this.#ratio));
    }
    return this.#located(block, at, length);
  }

  /** Blocks that read alike, and follow each other in the file, are one run, as far as their entries are in memory. */
  #located(block: number, at: number, length: number): Extent {
    const bat = this.#bat;
    const within = at - block * this.#blockSize;
    const entry = entryOfBlock(block, this.#ratio);
    const kind = kindOf(bat.state(entry));
    const start = bat.offset(entry);
    let count = 1;
    for (; count * this.#blockSize - within < length; count++) {
      const next = entryOfBlock(block + count, this.#ratio);
      if (bat.need(next) !== undefined || kindOf(bat.state(next)) !== kind) break;
      if (kind === 'data' && bat.offset(next) !== start + count * this.#blockSize) break;
    }
    const covered = Math.min(length, count * this.#blockSize - within);
    if (kind === 'zero') return { kind, length: covered };
    if (kind === 'data') return { kind, length: covered, storage: this.#file, at: start + within };
    const file = this.#file;
    return { kind: 'packed', length: covered, read: () => Promise.reject(unusable(file, bat.at)) };
  }

  /** Only asked of images that are writable. */
  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    return this.#writer!.prepareWrite(range);
  }

  async zero(range: Range, options: { readonly unmap: boolean }): Promise<boolean> {
    await this.#writer!.zero(range, options.unmap);
    return true;
  }

  async flush(): Promise<void> {
    await this.#writer?.flush();
  }

  close(): Promise<void> {
    return this.flush();
  }

  info(): FormatInfo {
    return { clusterSize: this.#blockSize, dirty: false };
  }
}
