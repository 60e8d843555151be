/** An image as bytes for the node above it: what makes `file.driver=qcow2` and filters over formats possible. */
import { checkRange, checkWritable, requestError } from '../storage/check.js';
import type { DataRun, MaybePromise, Preallocation, Range, Storage } from '../storage/storage.js';
import type { FormatInfo } from './driver.js';
import type { ChainExtent, ImageNode } from './image.js';
import { shownName } from './node-name.js';

/** Guest disks are counted in sectors: an image grows by whole ones. */
const SECTOR = 512;

export class NodeStorage implements Storage {
  readonly image: ImageNode;
  readonly filename: string;
  readonly driver: string;
  readonly writable: boolean;
  readonly alignment = 1;
  #growing: Promise<void> = Promise.resolve();

  constructor(image: ImageNode) {
    this.image = image;
    this.filename = shownName(image.name);
    this.driver = image.driver.name;
    this.writable = image.writable;
  }

  get size(): number {
    return this.image.size;
  }

  async allocated(): Promise<number | undefined> {
    let sum = 0;
    for (const storage of [this.image.file, ...this.image.format.children.values()]) {
      const bytes = await storage.allocated();
      if (bytes === undefined) return undefined;
      sum += bytes;
    }
    return sum;
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    checkRange(this.filename, 'read', at, into.byteLength);
    const inside = Math.max(0, Math.min(into.byteLength, this.size - at));
    into.fill(0, inside);
    await this.image.read(at, into.subarray(0, inside));
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    await this.#change('write', { at, length: from.byteLength });
    await this.image.write(at, from);
  }

  async zero(range: Range, options: { readonly unmap?: boolean } = {}): Promise<void> {
    await this.#change('zero', range);
    await this.image.zero(range, options);
  }

  async discard(range: Range): Promise<void> {
    checkRange(this.filename, 'discard', range.at, range.length);
    checkWritable(this.filename, 'discard', this.writable);
    const length = Math.min(range.length, this.size - range.at);
    if (length > 0) await this.image.discard({ at: range.at, length });
  }

  async truncate(size: number, preallocation: Preallocation = 'off'): Promise<void> {
    checkRange(this.filename, 'truncate', 0, size);
    checkWritable(this.filename, 'truncate', this.writable);
    const { format } = this.image;
    if (size === this.size) return;
    if (format.resize === undefined) throw requestError({ code: 'ENOTSUP' }, this.filename, 'truncate');
    await format.resize(size, { preallocation });
  }

  flush(): Promise<void> {
    return this.image.flush();
  }

  extent(range: Range): MaybePromise<DataRun> {
    checkRange(this.filename, 'extent', range.at, range.length);
    const length = Math.min(range.length, this.size - range.at);
    if (length <= 0) return { data: false, length: range.length };
    const found = this.image.status({ at: range.at, length });
    return found instanceof Promise ? found.then(runOf) : runOf(found);
  }

  close(): Promise<void> {
    return this.image.close();
  }

  async #change(operation: string, { at, length }: Range): Promise<void> {
    checkRange(this.filename, operation, at, length);
    checkWritable(this.filename, operation, this.writable);
    const end = Math.ceil((at + length) / SECTOR) * SECTOR;
    if (end <= this.size) return;
    // One after another: a smaller growth that comes late must not cut off a larger one.
    const grown = this.#growing.then(async () => {
      if (end > this.size) await this.truncate(end);
    });
    this.#growing = grown.catch(() => {});
    await grown;
  }
}

/** What a node without a format of its own tells of what is below it: files and devices of the host are clean. */
export async function toldBelow(storage: Storage): Promise<FormatInfo> {
  if (storage instanceof NodeStorage) {
    const { clusterSize, dirty } = await storage.image.format.info();
    return {
      ...(clusterSize === undefined ? {} : { clusterSize }),
      ...(dirty === undefined ? {} : { dirty }),
    };
  }
  if (storage.filtered !== undefined) return toldBelow(storage.filtered);
  return storage.driver === 'file' || storage.driver === 'host_device' ? { dirty: false } : {};
}

function runOf({ kind, length }: ChainExtent): DataRun {
  return { data: kind === 'data' || kind === 'packed', length };
}
