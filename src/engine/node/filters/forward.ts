/** A storage that hands everything on: what filters are made from. */
import type { DataRun, MaybePromise, Preallocation, Range, Storage } from '../../storage/storage.js';

export class ForwardStorage implements Storage {
  readonly filename: string;
  readonly driver: string;
  readonly children: ReadonlyMap<string, Storage>;
  readonly filtered: Storage;
  protected readonly below: Storage;

  constructor(driver: string, filename: string, child: string, below: Storage) {
    this.driver = driver;
    this.filename = filename;
    this.below = below;
    this.filtered = below;
    this.children = new Map([[child, below]]);
  }

  get writable(): boolean {
    return this.below.writable;
  }

  get alignment(): number {
    return this.below.alignment;
  }

  get size(): number {
    return this.below.size;
  }

  allocated(): Promise<number | undefined> {
    return this.below.allocated();
  }

  read(at: number, into: Uint8Array): Promise<void> {
    return this.below.read(at, into);
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.below.write(at, from);
  }

  zero(range: Range, options?: { readonly unmap?: boolean }): Promise<void> {
    return this.below.zero(range, options);
  }

  discard(range: Range): Promise<void> {
    return this.below.discard(range);
  }

  truncate(size: number, preallocation?: Preallocation): Promise<void> {
    return this.below.truncate(size, preallocation);
  }

  flush(): Promise<void> {
    return this.below.flush();
  }

  extent(range: Range): MaybePromise<DataRun> {
    return this.below.extent(range);
  }

  close(): Promise<void> {
    return this.below.close();
  }
}
