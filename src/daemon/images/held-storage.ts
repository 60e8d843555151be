/** A held node's bytes, for one of those that stand on it. The storage behind may be opened anew under all of them. */

import type { DirtyBitmaps } from '../../engine/node/dirty-bitmaps.js';
import type { FileIdentity } from '../../engine/storage/file-storage.js';
import type { DataRun, MaybePromise, Preallocation, Range, Storage } from '../../engine/storage/storage.js';

export interface Held {
  storage: Storage;
  dirtyBitmaps?: DirtyBitmaps;
}

export class HeldStorage implements Storage {
  readonly #held: Held;
  readonly #onClose: () => Promise<void>;
  #closed = false;

  constructor(held: Held, onClose: () => Promise<void>) {
    this.#held = held;
    this.#onClose = onClose;
  }

  get filename(): string {
    return this.#held.storage.filename;
  }

  get driver(): string {
    return this.#held.storage.driver;
  }

  get writable(): boolean {
    return this.#held.storage.writable;
  }

  get alignment(): number {
    return this.#held.storage.alignment;
  }

  get size(): number {
    return this.#held.storage.size;
  }

  get identity(): FileIdentity | undefined {
    return (this.#held.storage as { identity?: FileIdentity }).identity;
  }

  get children(): ReadonlyMap<string, Storage> {
    return this.#held.storage.children as ReadonlyMap<string, Storage>;
  }

  get filtered(): Storage {
    return this.#held.storage.filtered as Storage;
  }

  allocated(): Promise<number | undefined> {
    return this.#held.storage.allocated();
  }

  read(at: number, into: Uint8Array): Promise<void> {
    return this.#held.storage.read(at, into);
  }

  readNow(at: number, into: Uint8Array): boolean {
    const { storage } = this.#held;
    return storage.readNow?.(at, into) === true;
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.#recorded({ at, length: from.byteLength }, this.#held.storage.write(at, from));
  }

  zero(range: Range, options?: { readonly unmap?: boolean }): Promise<void> {
    return this.#recorded(range, this.#held.storage.zero(range, options));
  }

  discard(range: Range): Promise<void> {
    return this.#recorded(range, this.#held.storage.discard(range));
  }

  async truncate(size: number, preallocation?: Preallocation): Promise<void> {
    await this.#held.storage.truncate(size, preallocation);
    this.#held.dirtyBitmaps?.resized();
  }

  /** A bitmap may come while the request is under way. */
  #recorded({ at, length }: Range, request: Promise<void>): Promise<void> {
    return request.finally(() => this.#held.dirtyBitmaps?.record(at, length));
  }

  flush(): Promise<void> {
    return this.#held.storage.flush();
  }

  extent(range: Range): MaybePromise<DataRun> {
    return this.#held.storage.extent(range);
  }

  event(name: string, at?: number): void {
    this.#held.storage.event?.(name, at);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#onClose();
  }
}
