/** The open image as the node layer sees it. */
import { ImageError } from '../../error.js';
import type { BackingReference, Extent, FormatInfo, FormatNode, WriteTarget } from '../../node/driver.js';
import type { DataRun, MaybePromise, Range, Storage } from '../../storage/storage.js';
import { BlockMap } from './blocks.js';
import { VpcChecker } from './check.js';
import { DiskType, Footer } from './layout.js';
import { type Blocks, roundedSize, type VpcImage } from './open.js';
import { contentId } from './parent.js';
import { BlockWriter } from './write.js';

/** Fixed disks: the guest's bytes are the file's. */
class FixedNode implements FormatNode {
  readonly size: number;
  readonly unit = 1;
  readonly children: ReadonlyMap<string, Storage> = new Map();
  readonly startsAsZero = true;
  readonly dataHoles = true;
  readonly contentId: number;
  /** Nothing can be repaired: an image that is opened for that has no checker. */
  readonly checker: VpcChecker | undefined;
  readonly #file: Storage;
  /** Writes must not reach the footer, wherever a geometry says that the disk ends. */
  readonly #writable: number;

  constructor(image: VpcImage, writable: boolean) {
    this.size = image.size;
    this.contentId = contentId(image.footer.uniqueId);
    this.checker = writable ? undefined : new VpcChecker(image);
    this.#file = image.file;
    this.#writable = image.mirrored ? 0 : roundedSize(image.file) - Footer.size;
  }

  map({ at, length }: Range): MaybePromise<Extent> {
    const run = this.#file.extent({ at, length });
    return run instanceof Promise ? run.then((found) => this.#extent(at, found)) : this.#extent(at, run);
  }

  #extent(at: number, { data, length }: DataRun): Extent {
    return { kind: data ? 'data' : 'zero', length, storage: this.#file, at };
  }

  locate({ at, length }: Range): Extent {
    return { kind: 'data', length, storage: this.#file, at };
  }

  #checkWritable(end: number): void {
    if (end <= this.#writable) return;
    throw new ImageError('corrupt', 'Input/output error', {
      path: this.#file.filename,
      offset: this.#writable,
      errno: 'EIO',
      check: 'footer',
    });
  }

  prepareWrite({ at, length }: Range): WriteTarget {
    this.#checkWritable(at + length);
    return { storage: this.#file, at, length, fillBefore: 0, fillAfter: 0 };
  }

  async zero(range: Range, options: { readonly unmap: boolean }): Promise<boolean> {
    this.#checkWritable(range.at + range.length);
    await this.#file.zero(range, options);
    return true;
  }

  flush(): Promise<void> {
    return this.#file.flush();
  }

  async close(): Promise<void> {
    // Nothing of its own: the file is the node layer's.
  }

  info(): FormatInfo {
    return { dirty: false };
  }
}

class DynamicNode implements FormatNode {
  readonly size: number;
  /** Not the block: what is not written of a new block is zeros already, and blocks can be written to in part from then on. */
  readonly unit = 1;
  readonly #blockSize: number;
  readonly children: ReadonlyMap<string, Storage> = new Map();
  readonly startsAsZero = true;
  readonly dataHoles = false;
  readonly contentId: number;
  readonly backing: BackingReference | undefined;
  /** Nothing can be repaired: an image that is opened for that has no checker. */
  readonly checker: VpcChecker | undefined;
  readonly #map: BlockMap;
  readonly #writer: BlockWriter | undefined;

  constructor(image: VpcImage, blocks: Blocks, parent: BackingReference | undefined, writable: boolean) {
    this.size = image.size;
    this.#blockSize = blocks.blockSize;
    this.contentId = contentId(image.footer.uniqueId);
    this.backing = parent;
    const differencing = image.footer.diskType === DiskType.differencing;
    this.#map = new BlockMap(image.file, blocks, differencing);
    this.#writer = writable ? new BlockWriter({ ...image, blocks }, this.#map) : undefined;
    this.checker = writable ? undefined : new VpcChecker(image);
  }

  map(range: Range): MaybePromise<Extent> {
    return this.#map.map(range);
  }

  #write(): BlockWriter {
    if (this.#writer === undefined) {
      throw new ImageError('read-only', 'the image was opened for reading');
    }
    return this.#writer;
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    return this.#write().prepareWrite(range);
  }

  async zero(range: Range, options: { readonly unmap: boolean }): Promise<boolean> {
    await this.#write().zero(range, options);
    return true;
  }

  async flush(): Promise<void> {
    await this.#writer?.flush();
  }

  async close(): Promise<void> {
    await this.#writer?.close();
  }

  info(): FormatInfo {
    return { clusterSize: this.#blockSize, dirty: false };
  }
}

export function vpcNode(
  image: VpcImage,
  parent: BackingReference | undefined,
  writable: boolean,
): FormatNode {
  return image.blocks === undefined
    ? new FixedNode(image, writable)
    : new DynamicNode(image, image.blocks, parent, writable);
}
