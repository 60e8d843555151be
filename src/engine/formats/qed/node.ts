/** An open QED image as the node layer sees it. */
import { ImageError } from '../../error.js';
import type {
  BackingReference,
  CheckFacet,
  Extent,
  FormatInfo,
  FormatNode,
  WriteTarget,
} from '../../node/driver.js';
import type { MaybePromise, Preallocation, Range, Storage } from '../../storage/storage.js';
import { changeBacking } from './backing.js';
import { checkQed } from './check.js';
import type { QedImage } from './image.js';
import { Feature } from './layout.js';
import { map } from './mapping.js';
import { validImageSize } from './open.js';
import { Writer } from './write.js';

export class QedNode implements FormatNode {
  readonly unit: number;
  readonly children: ReadonlyMap<string, Storage> = new Map();
  readonly startsAsZero = true;
  readonly checker: CheckFacet;
  readonly #image: QedImage;
  readonly #writer: Writer;

  constructor(image: QedImage) {
    this.#image = image;
    this.unit = image.geometry.clusterSize;
    this.#writer = new Writer(image);
    this.checker = {
      check: async (context) => {
        await this.flush();
        return checkQed(image, context);
      },
    };
  }

  get size(): number {
    return this.#image.size;
  }

  get backing(): BackingReference | undefined {
    const { backingName: filename, header } = this.#image;
    if (filename === undefined) return undefined;
    const raw = (header.features & Feature.backingFormatNoProbe) !== 0n;
    return raw ? { filename, format: 'raw' } : { filename };
  }

  map(range: Range): MaybePromise<Extent> {
    return map(this.#image, range);
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    return this.#writer.prepareWrite(range);
  }

  async zero(range: Range, options: { readonly unmap: boolean }): Promise<boolean> {
    await this.#writer.zero(range, options);
    return true;
  }

  /** Only the size in the header changes: the L1 table is as large as it can be from the beginning. */
  async resize(
    size: number,
    options: { readonly preallocation: Preallocation; readonly zeroNew?: boolean },
  ): Promise<void> {
    const image = this.#image;
    const { header, file } = image;
    if (options.zeroNew === true) {
      // The new range would show what a longer backing file has there.
      throw new ImageError('unsupported', 'Block driver does not support requested flags');
    }
    if (options.preallocation !== 'off') {
      throw new ImageError('unsupported', `Unsupported preallocation mode '${options.preallocation}'`);
    }
    if (!validImageSize(BigInt(size), header.clusterSize, header.tableSize)) {
      throw new ImageError('invalid', 'Invalid image size specified');
    }
    if (size < image.size) {
      throw new ImageError('unsupported', 'Shrinking images is currently not supported');
    }
    header.imageSize = BigInt(size);
    try {
      await image.writeHeader();
      await file.flush();
    } catch (error) {
      header.imageSize = BigInt(image.size);
      throw error instanceof ImageError ? error.prefixed('Failed to update the image size: ') : error;
    }
    image.size = size;
  }

  async changeBacking(filename: string | undefined, format: string | undefined): Promise<void> {
    await this.flush();
    await changeBacking(this.#image, filename, format);
  }

  async flush(): Promise<void> {
    if (this.#image.writable) await this.#image.writeback.run();
  }

  close(): Promise<void> {
    return this.flush();
  }

  info(): FormatInfo {
    // The reference takes the need-check bit off in memory before it tells: it never says that an image is dirty.
    return { clusterSize: this.unit, dirty: false };
  }
}
