/** An open qcow image as the node layer sees it. */
import { compressRaw } from '../../codec/deflate.js';
import type {
  BackingReference,
  Extent,
  FormatInfo,
  FormatNode,
  PackFacet,
  WriteTarget,
} from '../../node/driver.js';
import type { MaybePromise, Range, Storage } from '../../storage/storage.js';
import type { PackedReader } from '../packed-reader.js';
import type { QcowImage } from './image.js';
import { CRYPT_NONE, QcowHeader, WINDOW_BITS } from './layout.js';
import { Mapping } from './mapping.js';
import { packedReader } from './packed.js';
import { Writer } from './write.js';

export class QcowNode implements FormatNode {
  readonly unit: number;
  readonly children: ReadonlyMap<string, Storage> = new Map();
  readonly startsAsZero = true;
  readonly pack: PackFacet | undefined;
  readonly #image: QcowImage;
  readonly #packed: PackedReader;
  readonly #mapping: Mapping;
  readonly #writer: Writer;

  constructor(image: QcowImage) {
    this.#image = image;
    const { clusterSize } = image.geometry;
    this.unit = clusterSize;
    this.#packed = packedReader(image);
    this.#mapping = new Mapping(image, this.#packed);
    const writer = new Writer(image, this.#packed);
    this.#writer = writer;
    this.pack = image.writable
      ? {
          unit: clusterSize,
          compress: (unit) => compressRaw(unit, { windowBits: WINDOW_BITS }),
          write: (at, packed) => writer.writePacked(at, packed),
        }
      : undefined;
  }

  get size(): number {
    return this.#image.size;
  }

  get backing(): BackingReference | undefined {
    const { backingName } = this.#image;
    return backingName === undefined ? undefined : { filename: backingName };
  }

  map(range: Range): MaybePromise<Extent> {
    return this.#mapping.map(range);
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    return this.#writer.prepareWrite(range);
  }

  /** The L1 table is emptied, and the file cut behind it. */
  async makeEmpty(): Promise<void> {
    const image = this.#image;
    const { file, header, l1At, l1Bytes } = image;
    await this.flush();
    await file.zero({ at: l1At, length: l1Bytes });
    await file.flush();
    image.l1.clear();
    image.l2.clear();
    this.#packed.forget();
    const nameEnd = Number(header.backingFileOffset) + header.backingFileSize;
    const end = Math.max(QcowHeader.size, l1At + l1Bytes, image.backingName === undefined ? 0 : nameEnd);
    if (end < file.size) await file.truncate(end);
    await file.flush();
    image.truncated();
  }

  async flush(): Promise<void> {
    if (this.#image.writable) await this.#image.writeback.run();
  }

  close(): Promise<void> {
    return this.flush();
  }

  info(): FormatInfo {
    const encrypted = this.#image.header.cryptMethod !== CRYPT_NONE;
    return { clusterSize: this.unit, dirty: false, ...(encrypted ? { encrypted } : {}) };
  }
}
