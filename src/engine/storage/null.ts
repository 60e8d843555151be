/** QEMU's `null-co` and `null-aio`: takes every write and keeps nothing. For measuring, and for reading without writing. */
import { setTimeout as sleep } from 'node:timers/promises';
import { checkRange, checkWritable, requestError } from './check.js';
import type { DataRun, Range, Storage } from './storage.js';

const DEFAULT_SIZE = 2 ** 30;

export interface NullOptions {
  readonly driver?: 'null-co' | 'null-aio';
  readonly filename?: string;
  /** Bytes; 1 GiB where not said. */
  readonly size?: number;
  /** Says that it is all zeros (a hole), as opposed to data that happens to be zeros. */
  readonly readZeroes?: boolean;
  /** How long each request takes. */
  readonly latencyNs?: number;
  readonly writable?: boolean;
}

export class NullStorage implements Storage {
  readonly filename: string;
  readonly driver: 'null-co' | 'null-aio';
  readonly writable: boolean;
  readonly alignment = 1;
  readonly size: number;
  readonly #hole: boolean;
  readonly #latencyMs: number;

  constructor(options: NullOptions = {}) {
    this.driver = options.driver ?? 'null-co';
    this.filename = options.filename ?? `${this.driver}://`;
    this.writable = options.writable ?? true;
    this.size = options.size ?? DEFAULT_SIZE;
    checkRange(this.filename, 'open', 0, this.size);
    this.#hole = options.readZeroes ?? false;
    this.#latencyMs = (options.latencyNs ?? 0) / 1e6;
  }

  async allocated(): Promise<number> {
    return 0;
  }

  /** Zeros whatever `readZeroes` says: QEMU leaves the buffer as it is then, which here could hold another image's bytes. */
  async read(at: number, into: Uint8Array): Promise<void> {
    checkRange(this.filename, 'read', at, into.length);
    await this.#pass();
    into.fill(0);
  }

  async write(at: number, from: Uint8Array): Promise<void> {
    await this.#change('write', { at, length: from.length });
  }

  async zero(range: Range): Promise<void> {
    await this.#change('zero', range);
  }

  async discard(range: Range): Promise<void> {
    await this.#change('discard', range);
  }

  async truncate(size: number): Promise<void> {
    checkRange(this.filename, 'truncate', 0, size);
    checkWritable(this.filename, 'truncate', this.writable);
    if (size !== this.size) throw requestError({ code: 'ENOTSUP' }, this.filename, 'truncate');
  }

  async flush(): Promise<void> {
    await this.#pass();
  }

  extent({ at, length }: Range): DataRun {
    checkRange(this.filename, 'extent', at, length);
    if (this.#hole || at >= this.size) return { data: false, length };
    return { data: true, length: Math.min(length, this.size - at) };
  }

  async close(): Promise<void> {}

  async #change(operation: string, { at, length }: Range): Promise<void> {
    checkRange(this.filename, operation, at, length);
    checkWritable(this.filename, operation, this.writable);
    if (at + length > this.size) throw requestError({ code: 'ENOSPC' }, this.filename, operation, at);
    await this.#pass();
  }

  #pass(): Promise<void> | undefined {
    return this.#latencyMs > 0 ? sleep(this.#latencyMs) : undefined;
  }
}
