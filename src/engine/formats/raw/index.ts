/** raw: the file's bytes are the guest's, all of them or a window of them (`offset`, `size`). */
import { ImageError } from '../../error.js';
import type {
  CreateContext,
  Extent,
  FormatDriver,
  FormatInfo,
  FormatNode,
  Measure,
  MeasureSpec,
  OpenContext,
  WriteTarget,
} from '../../node/driver.js';
import { toldBelow } from '../../node/node-storage.js';
import type { OptionDeclaration } from '../../node/option-table.js';
import type { DataRun, MaybePromise, Preallocation, Range, Storage } from '../../storage/storage.js';

/** QEMU counts guest disks in sectors; a file's last, incomplete sector counts as whole and reads as zeros. */
const SECTOR = 512;

const openOptions: readonly OptionDeclaration[] = [
  { name: 'offset', type: 'size', help: 'offset in the disk where the image starts' },
  { name: 'size', type: 'size', help: 'virtual disk size' },
];

const createOptions: readonly OptionDeclaration[] = [
  { name: 'size', type: 'size', help: 'Virtual disk size' },
];

class RawNode implements FormatNode {
  readonly unit = 1;
  readonly children: ReadonlyMap<string, Storage> = new Map();
  readonly startsAsZero = true;
  readonly transparent = true;
  readonly #file: Storage;
  readonly #offset: number;
  /** Set where the `size` option limits the window. */
  #window: number | undefined;

  constructor(file: Storage, offset: number, window: number | undefined) {
    this.#file = file;
    this.#offset = offset;
    this.#window = window;
  }

  get size(): number {
    return this.#window ?? Math.ceil(Math.max(0, this.#file.size - this.#offset) / SECTOR) * SECTOR;
  }

  map(range: Range): MaybePromise<Extent> {
    const at = range.at + this.#offset;
    const run = this.#file.extent({ at, length: range.length });
    return run instanceof Promise ? run.then((found) => this.#extent(at, found)) : this.#extent(at, run);
  }

  #extent(at: number, run: DataRun): Extent {
    return run.data
      ? { kind: 'data', length: run.length, storage: this.#file, at }
      : { kind: 'zero', length: run.length, storage: this.#file, at };
  }

  locate(range: Range): Extent {
    return { kind: 'data', length: range.length, storage: this.#file, at: range.at + this.#offset };
  }

  prepareWrite(range: Range): WriteTarget {
    return {
      storage: this.#file,
      at: range.at + this.#offset,
      length: range.length,
      fillBefore: 0,
      fillAfter: 0,
    };
  }

  async zero(range: Range, options: { readonly unmap: boolean }): Promise<boolean> {
    await this.#file.zero({ at: range.at + this.#offset, length: range.length }, options);
    return true;
  }

  async discard(range: Range): Promise<void> {
    await this.#file.discard({ at: range.at + this.#offset, length: range.length });
  }

  async resize(size: number, options: { readonly preallocation: Preallocation }): Promise<void> {
    if (options.preallocation === 'metadata') {
      throw new ImageError('unsupported', `Unsupported preallocation mode: ${options.preallocation}`);
    }
    if (this.#window !== undefined) {
      throw new ImageError('unsupported', 'Cannot resize fixed-size raw disks');
    }
    if (this.#file.driver === 'host_device' && size + this.#offset !== this.#file.size) {
      throw new ImageError('invalid', 'Cannot resize device files', { path: this.#file.filename });
    }
    await this.#file.truncate(size + this.#offset, options.preallocation);
  }

  flush(): Promise<void> {
    return this.#file.flush();
  }

  async close(): Promise<void> {
    // Nothing of its own: the file is the node layer's.
  }

  /** raw has nothing of its own to tell. */
  info(): Promise<FormatInfo> {
    return toldBelow(this.#file);
  }
}

function open(context: OpenContext): Promise<FormatNode> {
  const offset = (context.options.offset as number | undefined) ?? 0;
  const window = context.options.size as number | undefined;
  const real = context.file.size;
  if (offset > real) {
    throw new ImageError(
      'invalid',
      `Offset (${offset}) cannot be greater than size of the containing file (${real})`,
    );
  }
  if (window !== undefined && real - offset < window) {
    throw new ImageError(
      'invalid',
      `The sum of offset (${offset}) and size (${window}) has to be smaller or equal to the  actual size of the containing file (${real})`,
    );
  }
  if (window !== undefined && window % SECTOR !== 0) {
    throw new ImageError('invalid', `Specified size is not multiple of ${SECTOR}`);
  }
  return Promise.resolve(new RawNode(context.file, offset, window));
}

export const raw: FormatDriver = {
  name: 'raw',
  // Anything can be raw; any other format's claim wins.
  probe: () => 1,
  openOptions,
  open,
  createOptions,
  async create(context: CreateContext): Promise<void> {
    const preallocation = (context.options.preallocation as Preallocation | undefined) ?? 'off';
    // Guests see whole sectors only: a file of them is as large as the image it holds.
    await context.file.truncate(Math.ceil(context.size / SECTOR) * SECTOR, preallocation);
  },
  async measure({ size, source }: MeasureSpec): Promise<Measure> {
    // Holes count: what they take depends on the filesystem.
    const required = source === undefined ? ((size + 511n) / 512n) * 512n : size;
    return { required, fullyAllocated: required };
  },
  supportsBacking: false,
};
