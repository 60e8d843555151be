/** blkverify: reads from two nodes and fails where they differ, writes to both. */
import { errnoText, ImageError } from '../../error.js';
import type { DataRun, MaybePromise, Preallocation, Range, Storage } from '../../storage/storage.js';
import type { NodeName } from '../image.js';
import { shownName } from '../node-name.js';
import type { FilterDriver } from './filter.js';
import { each, firstError, openAll } from './several.js';

class BlkverifyStorage implements Storage {
  readonly driver = 'blkverify';
  readonly filename: string;
  readonly children: ReadonlyMap<string, Storage>;
  readonly filtered: Storage;
  readonly writable: boolean;
  readonly alignment = 1;
  readonly #test: Storage;
  readonly #both: readonly Storage[];

  constructor(filename: string, raw: Storage, test: Storage) {
    this.filename = filename;
    this.children = new Map([
      ['raw', raw],
      ['test', test],
    ]);
    this.writable = raw.writable && test.writable;
    this.filtered = raw;
    this.#test = test;
    this.#both = [raw, test];
  }

  get size(): number {
    return this.#test.size;
  }

  allocated(): Promise<undefined> {
    return Promise.resolve(undefined);
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    const other = Buffer.allocUnsafe(into.byteLength);
    await this.#each((storage) => storage.read(at, storage === this.#test ? into : other));
    if (other.equals(into)) return;
    const differs = other.findIndex((byte, index) => byte !== into[index]);
    throw new ImageError(
      'io',
      `blkverify: read offset=${at} bytes=${into.byteLength} contents mismatch at offset ${at + differs}`,
      { path: this.filename, offset: at + differs, operation: 'read', errno: 'EIO' },
    );
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.#each((storage) => storage.write(at, from));
  }

  zero(range: Range, options?: { readonly unmap?: boolean }): Promise<void> {
    return this.#each((storage) => storage.zero(range, options));
  }

  /** Not handed on: what discarded bytes read as may differ. */
  async discard(): Promise<void> {}

  truncate(size: number, preallocation?: Preallocation): Promise<void> {
    if (size === this.size) return Promise.resolve();
    void preallocation;
    return Promise.reject(
      new ImageError('unsupported', errnoText('ENOTSUP'), { path: this.filename, errno: 'ENOTSUP' }),
    );
  }

  flush(): Promise<void> {
    return this.#test.flush();
  }

  extent(range: Range): MaybePromise<DataRun> {
    return this.#test.extent(range);
  }

  close(): Promise<void> {
    return this.#each((storage) => storage.close());
  }

  async #each(work: (storage: Storage) => Promise<void>): Promise<void> {
    firstError(await each(this.#both, work));
  }
}

export const blkverify: FilterDriver = {
  name: 'blkverify',
  protocol: true,
  async open({ openChild }) {
    const opened = await openAll(['raw', 'test'], (name) => openChild(name, { strict: name === 'test' }));
    const [raw, test] = opened as [(typeof opened)[0], (typeof opened)[0]];
    const { plain } = raw.name;
    const name: NodeName = {
      plain:
        plain === undefined || test.name.plain === undefined
          ? undefined
          : `blkverify:${plain}:${test.name.plain}`,
      options: { driver: 'blkverify', raw: raw.name.options, test: test.name.options },
      home: undefined,
    };
    return {
      storage: new BlkverifyStorage(shownName(name), raw.storage, test.storage),
      path: undefined,
      name,
      lockables: opened.flatMap((each) => each.lockables),
    };
  },
};
