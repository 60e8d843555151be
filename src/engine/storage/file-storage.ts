/** Bytes in regular files and block devices. */
import { type Stats, statfsSync } from 'node:fs';
import { hostError, ImageError } from '../error.js';
import { checkRange, checkTruncate, checkWritable, requestError } from './check.js';
import type { DirectIo } from './direct.js';
import { closeDescriptor, readFully, setLength, statDescriptor, syncData, writeFully } from './file-io.js';
import { readCached } from './host/cached-read.js';
import { codeOf } from './host/errno.js';
import {
  changeSpace,
  copyFileRange,
  posixFallocate,
  reserveNow,
  type SpaceOperation,
  seekData,
  seekHole,
} from './host/space.js';
import type { FileLocks } from './locks.js';
import type { DataRun, Preallocation, Range, Storage } from './storage.js';

export type FileDriver = 'file' | 'host_device';

/** What the file behind a storage is, whatever name it was opened by: two names of one file have the same identity. */
export interface FileIdentity {
  readonly device: number;
  readonly inode: number;
}

/** What a storage of the host has beyond others. */
export interface FileFacet {
  readonly driver: FileDriver;
  readonly identity: FileIdentity;
  /** The locks held on it; undefined where it was opened without. */
  readonly locks: FileLocks | undefined;
  /**
   * Copies `range` of another file to offset `at` here inside the host, sharing blocks where the filesystem can. Resolves to
   * how many bytes from the start of the range were copied: fewer than asked (0) where the host cannot, or at the end of
   * the source; the caller copies the rest by read and write.
   */
  copyRange(from: Storage, range: Range, at: number): Promise<number>;
}

export interface FileState {
  readonly fd: number;
  readonly filename: string;
  readonly driver: FileDriver;
  readonly writable: boolean;
  readonly stats: Stats;
  /** Length in bytes: of the file, or of the device. */
  readonly size: number;
  /** Host space may be given back when asked to. */
  readonly discards: boolean;
  /** Flushes reach the disk. */
  readonly flushes: boolean;
  /** The page cache takes writes, and the host writes them when it likes: allocating ahead of large ones is worth it. */
  readonly buffered: boolean;
  readonly direct: DirectIo | undefined;
  readonly locks: FileLocks | undefined;
}

const SECTOR = 512;
/** What is allocated at the start of a new file: a page. */
const FIRST_BLOCK = 4096;
/** More than this at once would keep the thread from all else for too long. */
const CACHED_READ_MAX = 4 * 1024 * 1024;
const SMALL_READ = 16 * 1024;
const EMPTY: Range = { at: 0, length: 0 };

/** Zeros are written in pieces of this many bytes. */
const ZERO_CHUNK = 1024 * 1024;
let zeros: Uint8Array | undefined;

/** Writes at least as long as this are worth a call that allocates their blocks first. */
const RESERVE_FROM = 1024 * 1024;
/**
 * Filesystems, by statfs(2), on which a large buffered write to allocated space was measured to be much faster than one to
 * a hole: on ext4 it halves the time of copying a file that is in the page cache.
 */
const RESERVING_FILESYSTEMS: ReadonlySet<number> = new Set([0xef53]);

export class FileStorage implements Storage, FileFacet {
  readonly filename: string;
  readonly driver: FileDriver;
  readonly writable: boolean;
  readonly alignment: number;
  readonly identity: FileIdentity;
  readonly locks: FileLocks | undefined;
  readonly #discards: boolean;
  readonly #flushes: boolean;
  readonly #regular: boolean;
  readonly #direct: DirectIo | undefined;
  #fd: number;
  #size: number;
  /** Requests under way; the descriptor outlives them. */
  #busy = 0;
  #whenIdle: (() => void) | undefined;
  /** The last run of data that was found; a run never turns into a hole but by our own doing, or another's `-U`. */
  #run = { from: 0, to: 0 };
  /** The host can tell what is in the page cache by reading it. */
  #cachedReads = true;
  /** Up to here large writes need no reservation: reserved, or found allocated at open. */
  #reservedTo: number;
  #reserves: boolean | undefined;
  /** Reservations reach to here; what is past the size is given back at the end. */
  #reservedBeyond = 0;
  /** The host has lost written data (it reports that once): no later flush may claim success. */
  #lost: ImageError | undefined;

  constructor(state: FileState) {
    this.#fd = state.fd;
    this.filename = state.filename;
    this.driver = state.driver;
    this.writable = state.writable;
    this.#size = state.size;
    this.#discards = state.discards;
    this.#flushes = state.flushes;
    this.#direct = state.direct;
    this.alignment = state.direct?.alignment ?? 1;
    this.locks = state.locks;
    const { stats } = state;
    this.#regular = stats.isFile();
    this.identity = this.#regular
      ? { device: stats.dev, inode: stats.ino }
      : // Every node of a device in /dev is the same device.
        { device: stats.rdev, inode: -1 };
    this.#reserves = state.buffered && this.#regular ? undefined : false;
    this.#reservedTo = stats.blocks * 512 >= stats.size ? stats.size : 0;
  }

  get size(): number {
    return this.#size;
  }

  allocated(): Promise<number> {
    return this.#request('stat', EMPTY, async (fd) => (await statDescriptor(fd)).blocks * 512);
  }

  read(at: number, into: Uint8Array): Promise<void> {
    const direct = this.#direct;
    const range = { at, length: into.length };
    return this.#request('read', range, async (fd) => {
      if (direct) return direct.read(at, into);
      // Metadata, most often: what the page cache has of it costs less to copy here than to have copied by another thread.
      if (into.length > SMALL_READ || !this.readNow(at, into)) return readFully(fd, at, into);
    });
  }

  readNow(at: number, into: Uint8Array): boolean {
    if (!this.#cachedReads || this.#direct || into.length > CACHED_READ_MAX) return false;
    checkRange(this.filename, 'read', at, into.length);
    const count = into.length === 0 ? 0 : readCached(this.#descriptor(), at, into);
    if (count === undefined) this.#cachedReads = false;
    return count === into.length;
  }

  write(at: number, from: Uint8Array): Promise<void> {
    return this.#change('write', { at, length: from.length }, async (fd) => {
      const end = at + from.length;
      if (this.#direct) {
        await this.#direct.write(at, from, () => this.#size);
      } else {
        if (from.length >= RESERVE_FROM && end > this.#reservedTo && this.#reserves !== false) {
          this.#reserve(fd, at, end);
        }
        await writeFully(fd, at, from);
      }
      if (end > this.#size && this.#regular) this.#size = end;
    });
  }

  zero(range: Range, options: { readonly unmap?: boolean } = {}): Promise<void> {
    return this.#change('zero', range, async (fd) => {
      const unmap = (options.unmap ?? false) && this.#discards;
      await this.#zeroInHost(fd, range, unmap);
    });
  }

  discard({ at, length }: Range): Promise<void> {
    return this.#change('discard', { at, length }, async (fd) => {
      const end = Math.min(at + length, this.#size);
      if (!this.#discards || end <= at) return;
      this.#forgetRun();
      await this.#space(fd, 'punch', { at, length: end - at });
      this.#forgetRun();
    });
  }

  async truncate(size: number, preallocation: Preallocation = 'off'): Promise<void> {
    checkWritable(this.filename, 'truncate', this.writable);
    checkTruncate(this, size, preallocation);
    return this.#change('truncate', { at: 0, length: size }, async (fd) => {
      if (!this.#regular) return;
      const before = this.#size;
      this.#forgetRun();
      if (preallocation === 'off' || preallocation === 'metadata' || size === before) {
        await this.#setSize(fd, size);
        if (before === 0 && size > 0) await this.#allocateFirstBlock(fd, size);
      } else await this.#growAllocated(fd, { at: before, length: size - before }, preallocation);
    });
  }

  flush(): Promise<void> {
    return this.#request('flush', EMPTY, async (fd) => {
      if (!this.writable || !this.#flushes) return;
      if (this.#lost) throw this.#lost;
      try {
        await syncData(fd);
      } catch (error) {
        // The kernel marks the pages clean after a failure: asking again would succeed without the data being there.
        this.#lost = requestError(error, this.filename, 'flush');
        throw this.#lost;
      }
    });
  }

  extent({ at, length }: Range): DataRun {
    checkRange(this.filename, 'extent', at, length);
    const fd = this.#descriptor();
    const end = Math.min(at + length, this.#size);
    if (at >= end) return { data: false, length };
    if (at >= this.#run.from && at < this.#run.to) {
      return { data: true, length: Math.min(end, this.#run.to) - at };
    }
    if (!this.#regular) return { data: true, length: end - at };
    const data = seekData(fd, at);
    if (data === 'unknown') return { data: true, length: end - at };
    if (data === 'end' || data >= at + length) return { data: false, length };
    if (data > at) return { data: false, length: data - at };
    const hole = seekHole(fd, at);
    // A file that was cut meanwhile has its end before `at`.
    const to = typeof hole === 'number' && hole > at ? hole : end;
    this.#run = { from: at, to };
    return { data: true, length: Math.min(end, to) - at };
  }

  copyRange(from: Storage, range: Range, at: number): Promise<number> {
    return this.#change('copy', { at, length: range.length }, async (fd) => {
      if (!(from instanceof FileStorage)) return 0;
      let done = 0;
      await from.#request('copy', range, (source) =>
        this.#apart(async () => {
          while (done < range.length) {
            const left = range.length - done;
            const to = { fd, at: at + done };
            const count = await copyFileRange({ fd: source, at: range.at + done }, to, left);
            if (count === undefined || count === 0) return;
            done += count;
            this.#size = Math.max(this.#size, at + done);
          }
        }),
      );
      return done;
    });
  }

  async close(): Promise<void> {
    const fd = this.#descriptor();
    this.#fd = -1;
    this.locks?.end();
    if (this.#busy > 0) {
      await new Promise<void>((resolve) => {
        this.#whenIdle = resolve;
      });
    }
    try {
      if (this.#reservedBeyond > this.#size) await this.#giveBack(fd);
    } finally {
      await closeDescriptor(fd, this.writable).catch((error: unknown) => {
        throw requestError(error, this.filename, 'close');
      });
    }
  }

  #descriptor(): number {
    if (this.#fd >= 0) return this.#fd;
    throw new ImageError('internal', 'request on a closed file', { path: this.filename });
  }

  /** Runs work on the descriptor, which stays open until it ends, and names its errors. */
  async #request<T>(operation: string, range: Range, work: (fd: number) => Promise<T>): Promise<T> {
    checkRange(this.filename, operation, range.at, range.length);
    const fd = this.#descriptor();
    this.#busy++;
    try {
      return await work(fd);
    } catch (error) {
      throw requestError(error, this.filename, operation, range.at);
    } finally {
      this.#busy--;
      if (this.#busy === 0) this.#whenIdle?.();
    }
  }

  async #change<T>(operation: string, range: Range, work: (fd: number) => Promise<T>): Promise<T> {
    checkWritable(this.filename, operation, this.writable);
    return this.#request(operation, range, async (fd) => {
      try {
        return await work(fd);
      } catch (error) {
        // Part of it may have been done, and have made the file longer.
        const stats = this.#regular ? await statDescriptor(fd).catch(() => undefined) : undefined;
        if (stats) this.#size = stats.size;
        throw error;
      }
    });
  }

  /** Keeps the work apart from blocks that an unaligned direct write is changing. */
  #apart<T>(work: () => Promise<T>): Promise<T> {
    return this.#direct ? this.#direct.change(work) : work();
  }

  #space(fd: number, operation: SpaceOperation, range: Range): Promise<boolean> {
    return this.#apart(() => changeSpace(fd, operation, range));
  }

  #forgetRun(): void {
    this.#run = { from: 0, to: 0 };
  }

  async #setSize(fd: number, size: number): Promise<void> {
    try {
      await this.#apart(() => setLength(fd, size));
    } catch (error) {
      throw hostError('Could not resize file', { code: codeOf(error) }, { path: this.filename });
    }
    this.#size = size;
    this.#reservedTo = Math.min(this.#reservedTo, size);
    this.#reservedBeyond = 0;
  }

  /**
   * Gives a file that was empty its first block, as QEMU does: a hole there tells nobody what alignment direct requests
   * need. Where it fails the file is as good without.
   */
  async #allocateFirstBlock(fd: number, size: number): Promise<void> {
    const length = size < FIRST_BLOCK ? Math.min(size, SECTOR) : FIRST_BLOCK;
    await this.#apart(() => this.#writeZeros(fd, { at: 0, length })).catch(() => undefined);
  }

  /** Grows the file by a range that is allocated by the host, or by writing zeros; as it was where that fails. */
  async #growAllocated(fd: number, range: Range, preallocation: 'falloc' | 'full'): Promise<void> {
    const end = range.at + range.length;
    let text = 'Could not preallocate new data';
    try {
      if (preallocation === 'full' || !(await posixFallocate(fd, range))) {
        text = 'Could not write zeros for preallocation';
        await this.#writeZeros(fd, range);
        if (preallocation === 'full' && this.#flushes) await syncData(fd);
      }
    } catch (error) {
      await setLength(fd, range.at).catch(() => undefined);
      throw hostError(text, { code: codeOf(error) }, { path: this.filename });
    }
    this.#size = end;
    this.#reservedTo = Math.max(this.#reservedTo, end);
    if (range.at === 0 && preallocation === 'falloc') await this.#allocateFirstBlock(fd, end);
  }

  async #zeroInHost(fd: number, range: Range, unmap: boolean): Promise<void> {
    const { at, length } = range;
    if (length === 0) return;
    const end = at + length;
    if (!this.#regular) {
      const done =
        (unmap && (await this.#space(fd, 'punch', range))) || (await this.#space(fd, 'zero', range));
      return done ? undefined : this.#writeZeros(fd, range);
    }
    this.#forgetRun();
    try {
      if (unmap) {
        // Grown first: not every filesystem takes reservations back past the end.
        if (end > this.#size) await this.#grow(fd, end);
        if (await this.#space(fd, 'punch', range)) return;
      }
      if (await this.#space(fd, 'zero', range)) {
        this.#size = Math.max(this.#size, end);
        return;
      }
      // tmpfs and others that only punch: what is allocated anew reads as zeros.
      if ((await this.#space(fd, 'punch', range)) && (await this.#space(fd, 'allocate', range))) {
        this.#size = Math.max(this.#size, end);
        return;
      }
      const inside = Math.min(end, this.#size) - at;
      if (inside > 0) await this.#writeZeros(fd, { at, length: inside });
      if (end > this.#size) await this.#grow(fd, end);
    } finally {
      this.#forgetRun();
    }
  }

  /**
   * Makes the file at least `size` bytes long, whose last byte the caller is about to make zero: by writing that one. Setting
   * the length would cut off what another request is writing behind it.
   */
  async #grow(fd: number, size: number): Promise<void> {
    await this.#writeZeros(fd, { at: size - 1, length: 1 });
    this.#size = Math.max(this.#size, size);
  }

  async #writeZeros(fd: number, { at, length }: Range): Promise<void> {
    zeros ??= new Uint8Array(ZERO_CHUNK);
    for (let done = 0; done < length; ) {
      const part = zeros.subarray(0, Math.min(length - done, ZERO_CHUNK));
      if (this.#direct) await this.#direct.write(at + done, part, () => this.#size);
      else await writeFully(fd, at + done, part);
      done += part.length;
    }
  }

  /** Has the host allocate what of [at, end) lies past earlier reservations, just before it is written. */
  #reserve(fd: number, at: number, end: number): void {
    this.#reserves ??= reservesWell(fd);
    if (!this.#reserves) return;
    const from = Math.max(at, this.#reservedTo);
    this.#reservedTo = end;
    this.#reservedBeyond = Math.max(this.#reservedBeyond, end);
    // Where it fails, the write itself will tell whether there is space for the data.
    this.#reserves = reserveNow(fd, { at: from, length: end - from });
  }

  /** Where a write failed after its reservation, the space past the end of the file is let go. */
  async #giveBack(fd: number): Promise<void> {
    try {
      // Not where someone else has made the file longer.
      if ((await statDescriptor(fd)).size === this.#size) await setLength(fd, this.#size);
    } catch {
      // The file is as it should be but for some space.
    }
  }
}

function reservesWell(fd: number): boolean {
  try {
    return RESERVING_FILESYSTEMS.has(statfsSync(`/proc/self/fd/${fd}`).type);
  } catch {
    return false;
  }
}
