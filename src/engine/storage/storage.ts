/**
 * Bytes. A Storage knows nothing of images: it reads, writes, zeroes, discards, truncates, flushes, and tells what is
 * a hole. Offsets and lengths are byte counts, exact to 2^53.
 */

/** A run of bytes. Passed as one value so that offset and length cannot be swapped. */
export interface Range {
  readonly at: number;
  readonly length: number;
}

/** Answers that are often at hand are given without a promise; `await` takes either. */
export type MaybePromise<T> = T | Promise<T>;

export type Preallocation = 'off' | 'metadata' | 'falloc' | 'full';

/** A run that is uniformly data or hole, from the asked offset on, no longer than asked. */
export interface DataRun {
  readonly data: boolean;
  readonly length: number;
}

export interface Storage {
  /** The name that messages use; for a file, as its user wrote it. */
  readonly filename: string;
  /** `file`, `host_device`, `null-co`, `memory`: QEMU's protocol driver name. */
  readonly driver: string;
  readonly writable: boolean;
  /** Offsets, lengths and buffers of requests are multiples of this (1, or the sector size with O_DIRECT: the storage itself copes with others, more slowly). */
  readonly alignment: number;
  /** Current length in bytes; follows writes and truncates made through this object. */
  readonly size: number;
  /** Storages that this one stands on, by child name, in the order in which they were attached: filters have them. */
  readonly children?: ReadonlyMap<string, Storage>;
  /** The one of them whose bytes these are: what it tells of itself holds here. */
  readonly filtered?: Storage;
  /** Bytes that the host has allocated (st_blocks), or the size where the host cannot say; undefined where it is not told. */
  allocated(): Promise<number | undefined>;
  /** Fills `into` from offset `at`; what lies past the end reads as zeros. */
  read(at: number, into: Uint8Array): Promise<void>;
  /**
   * As `read`, at once and in this thread, where the bytes are in memory: false where they are not, with `into` undefined.
   * For one reader among writers this is cheaper than another thread; several readers are better off with `read`.
   */
  readNow?(at: number, into: Uint8Array): boolean;
  /** Writes all of `from` at offset `at`, growing the storage. */
  write(at: number, from: Uint8Array): Promise<void>;
  /** Makes the range read as zeros, growing the storage to its end; `unmap` lets the host space go. */
  zero(range: Range, options?: { readonly unmap?: boolean }): Promise<void>;
  /** Gives host space back; what the range reads as afterwards is undefined (zeros on files with holes). */
  discard(range: Range): Promise<void>;
  /** Sets the length; what is added reads as zeros and is preallocated as said. */
  truncate(size: number, preallocation?: Preallocation): Promise<void>;
  /** What was written before is on stable storage after (unless the cache mode is `unsafe`). */
  flush(): Promise<void>;
  /** The first run of data or hole; past the end is a hole. */
  extent(range: Range): MaybePromise<DataRun>;
  /** Hears of what a format is about to do (QAPI's BlkdebugEvent), and where; only what injects errors, or traces, listens. */
  event?(name: string, at?: number): void;
  close(): Promise<void>;
}
