/** The refcounts that the image itself records: read whole, compared with what was counted, and corrected. */
import { errnoText, ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import { CHUNK, MAX_CLUSTERS, type ReferenceCounts } from './check-counts.js';
import { breathe, type CheckState, entryHex, readTable } from './check-image.js';
import type { MetadataGuard } from './check-overlap.js';
import {
  type Geometry,
  MAX_REFCOUNT_TABLE_BYTES,
  type RefcountAccess,
  refcountAccess,
  refcountTableHasReservedBits,
  refcountTableOffset,
} from './layout.js';

/** In the cells: 255 or more, look at the block itself. */
const SATURATED = 255;
const SECTOR = 512;
const LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;
/** What an off_t cannot express. */
const MAX_FILE_OFFSET = 2 ** 63;

type Cells = Uint8Array;

/** Refcounts on disk, a byte each, saturated: enough to compare, and to see which are exactly one. */
export class DiskRefcounts {
  readonly blockBits: number;
  /** By index into the refcount table; undefined: all zero. */
  readonly cells: (Cells | undefined)[] = [];
  /** Entries of the table whose block cannot be read. */
  readonly unreadable = new Set<number>();
  /** An offset that is no cluster's was met where a refcount was asked for; said once. */
  damaged = false;
  readonly #file: Storage;
  readonly #geometry: Geometry;
  readonly #access: RefcountAccess;
  readonly #table: Uint32Array;
  readonly #guard: MetadataGuard;
  #raw: { index: number; bytes: Uint8Array } | undefined;

  private constructor({ file, header, guard }: CheckState, table: Uint32Array) {
    this.#file = file;
    this.#guard = guard;
    this.#geometry = header.geometry;
    this.#access = refcountAccess(header.geometry.refcountOrder);
    this.#table = table;
    this.blockBits = Math.log2(header.geometry.refcountBlockEntries);
  }

  static async load(state: CheckState): Promise<DiskRefcounts> {
    const { file, header, context } = state;
    const self = new DiskRefcounts(state, await readTable(file, header.refcountTable));
    const known = new Map<number, Cells | undefined>();
    const { clusterSize } = header.geometry;
    const buffers = [0, 1, 2, 3].map(() => new Uint8Array(clusterSize));
    for (let index = 0; index < self.entries; ) {
      await breathe(context.signal);
      const batch: { index: number; at: number; bytes: Uint8Array }[] = [];
      for (; index < self.entries && batch.length < buffers.length; index++) {
        const at = self.offset(index);
        if (at === 0) continue;
        if (self.isUnaligned(index) || at >= MAX_FILE_OFFSET) self.unreadable.add(index);
        else if (at < file.size) batch.push({ index, at, bytes: buffers[batch.length]! });
      }
      await Promise.all(batch.map(({ at, bytes }) => (known.has(at) ? undefined : file.read(at, bytes))));
      for (const { index: entry, at, bytes } of batch) {
        if (!known.has(at)) known.set(at, self.#saturate(bytes));
        const cells = known.get(at);
        if (cells !== undefined) self.cells[entry] = cells;
      }
    }
    return self;
  }

  /** Entries of the refcount table. */
  get entries(): number {
    return this.#table.length / 2;
  }

  offset(index: number): number {
    return refcountTableOffset(this.#table, index);
  }

  /** Exact where the offset, as a number, is rounded. */
  isUnaligned(index: number): boolean {
    return (this.#table[index * 2 + 1]! & (this.#geometry.clusterSize - 1) & ~(SECTOR - 1)) !== 0;
  }

  /** The offset in hexadecimal. */
  offsetText(index: number): string {
    return entryHex(this.#table[index * 2]!, (this.#table[index * 2 + 1]! & ~(SECTOR - 1)) >>> 0);
  }

  hasReservedBits(index: number): boolean {
    return refcountTableHasReservedBits(this.#table, index);
  }

  /** The refcount, saturated; undefined where its block cannot be read. */
  saturated(cluster: number): number | undefined {
    const index = Math.floor(cluster / 2 ** this.blockBits);
    if (this.unreadable.has(index)) return undefined;
    return this.cells[index]?.[cluster % 2 ** this.blockBits] ?? 0;
  }

  /** The refcount as messages print it. */
  async exact(cluster: number): Promise<bigint> {
    const index = Math.floor(cluster / 2 ** this.blockBits);
    if (this.cells[index] === undefined) return 0n;
    return this.exactIn(await this.block(index), cluster % 2 ** this.blockBits);
  }

  exactIn(block: Uint8Array, entry: number): bigint {
    if (this.#geometry.refcountBits < 64) return BigInt(this.#access.get(block, entry));
    return new DataView(block.buffer, block.byteOffset).getBigUint64(entry * 8);
  }

  /** The bytes of a refcount block, the last one kept. Not written by the caller but through `correct`. */
  async block(index: number): Promise<Uint8Array> {
    if (this.#raw?.index === index) return this.#raw.bytes;
    const bytes = new Uint8Array(this.#geometry.clusterSize);
    const at = this.offset(index);
    if (at !== 0 && at < this.#file.size) await this.#file.read(at, bytes);
    this.#raw = { index, bytes };
    return bytes;
  }

  /** Sets refcounts of one block (entry, value) and writes the sectors that change. */
  async correct(index: number, changes: readonly (readonly [entry: number, value: number])[]): Promise<void> {
    const at = this.offset(index);
    const block = await this.block(index);
    this.#guard.check(at, block.length, ['refcount block']);
    const before = new Uint8Array(block);
    await this.#guard.keep(this.#file, at, block.length);
    for (const [entry, value] of changes) this.#access.set(block, entry, value);
    this.cells[index] = this.#saturate(block) ?? new Uint8Array(2 ** this.blockBits);
    for (let from = 0; from < block.length; ) {
      let to = from;
      while (
        to < block.length &&
        Buffer.compare(block.subarray(to, to + SECTOR), before.subarray(to, to + SECTOR)) !== 0
      ) {
        to += SECTOR;
      }
      if (to > from) await this.#file.write(at + from, block.subarray(from, to));
      from = to + SECTOR;
    }
  }

  #saturate(block: Uint8Array): Cells | undefined {
    const { refcountBits, refcountBlockEntries } = this.#geometry;
    if (isZero(block)) return undefined;
    if (refcountBits === 8) return new Uint8Array(block);
    const cells = new Uint8Array(refcountBlockEntries);
    if (refcountBits === 16) {
      const words = new Uint16Array(block.buffer, block.byteOffset, cells.length);
      const [small, large] = LITTLE_ENDIAN ? [8, 0] : [0, 8];
      for (let entry = 0; entry < cells.length; entry++) {
        const word = words[entry]!;
        cells[entry] = ((word >>> large) & 0xff) === 0 ? (word >>> small) & 0xff : SATURATED;
      }
      return cells;
    }
    const { get } = this.#access;
    for (let entry = 0; entry < cells.length; entry++) cells[entry] = Math.min(get(block, entry), SATURATED);
    return cells;
  }
}

let zeros = new Uint8Array(0);
function isZero(bytes: Uint8Array): boolean {
  if (zeros.length < bytes.length) zeros = new Uint8Array(bytes.length);
  return Buffer.compare(bytes, zeros.subarray(0, bytes.length)) === 0;
}

export interface Comparison {
  /** A cluster in use has no refcount: the refcount structure cannot be trusted to find free ones. */
  rebuild: boolean;
  /** Highest cluster with a reference or a refcount. */
  highest: number;
}

const NEVER = { leaks: false, errors: false };

/** Compares every refcount with what was counted; corrects what `repair` allows. Counts go into the state's result. */
export async function compareRefcounts(
  state: CheckState,
  counts: ReferenceCounts,
  disk: DiskRefcounts,
  repair = NEVER,
): Promise<Comparison> {
  const { context } = state;
  const repairing = context.repair.leaks || context.repair.errors;
  const found: Comparison = { rebuild: false, highest: 0 };
  const blockEntries = 2 ** disk.blockBits;
  const step = Math.min(blockEntries, CHUNK);
  const zero = new Uint8Array(step);
  for (let first = 0; first < counts.clusters; first += step) {
    if (first % (step * 256) === 0) await breathe(context.signal);
    const index = Math.floor(first / blockEntries);
    const within = first % blockEntries;
    const length = Math.min(step, counts.clusters - first);
    if (disk.unreadable.has(index)) {
      const notice = unalignedNotice(disk, index, repairing);
      if (notice !== undefined) context.report(notice);
      if (notice !== undefined && repairing) state.guard.told = true;
      for (let cluster = first; cluster < first + length; cluster++) {
        context.report(`Can't get refcount for cluster ${cluster}: Input/output error`);
        state.result.checkErrors += 1;
      }
      continue;
    }
    const counted = counts.cells(first, length);
    const recorded = disk.cells[index]?.subarray(within, within + length);
    if (counted === undefined && recorded === undefined) continue;
    const one = recorded ?? zero.subarray(0, length);
    const other = counted ?? zero.subarray(0, length);
    const highest = Math.max(lastUsed(one), lastUsed(other));
    if (highest >= 0) found.highest = first + highest;
    if (Buffer.compare(one, other) === 0 && !one.includes(SATURATED)) continue;
    await compareRun(state, counts, disk, repair, found, { first, index, within, one, other });
  }
  return found;
}

interface Run {
  readonly first: number;
  readonly index: number;
  readonly within: number;
  readonly one: Uint8Array;
  readonly other: Uint8Array;
}

async function compareRun(
  state: CheckState,
  counts: ReferenceCounts,
  disk: DiskRefcounts,
  repair: { readonly leaks: boolean; readonly errors: boolean },
  found: Comparison,
  run: Run,
): Promise<void> {
  const { context, result } = state;
  const block = await disk.block(run.index);
  const changes: [number, number][] = [];
  for (let at = 0; at < run.one.length; at++) {
    if (run.one[at] === run.other[at] && run.one[at] !== SATURATED) continue;
    const cluster = run.first + at;
    const recorded = disk.exactIn(block, run.within + at);
    const counted = counts.get(cluster);
    if (recorded === BigInt(counted)) continue;
    const leak = recorded > BigInt(counted);
    if (recorded === 0n) found.rebuild = true;
    const fix = leak ? repair.leaks : repair.errors && recorded !== 0n;
    const word = fix ? 'Repairing' : leak ? 'Leaked' : 'ERROR';
    context.report(`${word} cluster ${cluster} refcount=${recorded} reference=${counted}`);
    if (fix) changes.push([run.within + at, counted]);
    else if (leak) result.leaks += 1;
    else result.corruptions += 1;
    if (fix && leak) result.leaksFixed += 1;
    else if (fix) result.corruptionsFixed += 1;
  }
  if (changes.length > 0) await disk.correct(run.index, changes);
}

function lastUsed(cells: Uint8Array): number {
  let at = cells.length - 1;
  while (at >= 0 && cells[at] === 0) at--;
  return at;
}

/**
 * Counts the refcount blocks and says whether the structure is broken beyond correcting entries. With repair a block that
 * lies past the end of the file is made part of it.
 */
export async function checkRefcountBlocks(
  state: CheckState,
  counts: ReferenceCounts,
  disk: DiskRefcounts,
  count: (at: number, length: number) => void,
  repair: boolean,
): Promise<boolean> {
  const { context, result, file, header } = state;
  const { clusterSize } = header.geometry;
  // not to where no refcount table could reach
  const reach = (MAX_REFCOUNT_TABLE_BYTES / 8) * header.geometry.refcountBlockEntries;
  const limit = Math.min(MAX_CLUSTERS, reach) * clusterSize;
  let rebuild = false;
  for (let index = 0; index < disk.entries; index++) {
    const at = disk.offset(index);
    if (at === 0 && !disk.hasReservedBits(index)) continue;
    if (disk.hasReservedBits(index)) {
      context.report(`ERROR refcount table entry ${index} has reserved bits set`);
      result.corruptions += 1;
      rebuild = true;
      continue;
    }
    if (disk.isUnaligned(index)) {
      context.report(`ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`);
      result.corruptions += 1;
      rebuild = true;
      continue;
    }
    if (at >= counts.clusters * clusterSize) {
      context.report(`${repair ? 'Repairing' : 'ERROR'} refcount block ${index} is outside image`);
      if (!repair) {
        result.corruptions += 1;
        continue;
      }
      const refused = await extend(file, at + clusterSize, limit);
      if (refused !== undefined) {
        if (refused !== 'EINVAL') context.report(`qemu-img: Could not resize file: ${errnoText(refused)}`);
        context.report(`ERROR could not resize image: ${errnoText(refused)}`);
        result.corruptions += 1;
        rebuild = true;
        continue;
      }
      result.corruptionsFixed += 1;
      count(at, clusterSize);
      continue;
    }
    count(at, clusterSize);
    const references = counts.get(at / clusterSize);
    if (references !== 1) {
      context.report(`ERROR refcount block ${index} refcount=${references}`);
      result.corruptions += 1;
      rebuild = true;
    }
  }
  return rebuild;
}

/** What the reference says once when a refcount is asked for whose block is at no cluster's offset. */
function unalignedNotice(disk: DiskRefcounts, index: number, writable: boolean): string | undefined {
  if (disk.damaged || !disk.isUnaligned(index)) return undefined;
  disk.damaged = true;
  const what = `Refblock offset 0x${disk.offsetText(index)} unaligned (reftable index: ${index})`;
  return writable
    ? `qcow2: Marking image as corrupt: ${what}; further corruption events will be suppressed`
    : `qcow2: Image is corrupt: ${what}; further non-fatal corruption events will be suppressed`;
}

/** Makes the file longer; the host's reason where it cannot be. What no file offset can express is an invalid argument. */
async function extend(file: Storage, size: number, limit: number): Promise<string | undefined> {
  if (size >= MAX_FILE_OFFSET) return 'EINVAL';
  if (size > limit) return 'EFBIG';
  try {
    await file.truncate(size);
    return undefined;
  } catch (error) {
    if (error instanceof ImageError) return error.context.errno ?? 'EIO';
    throw error;
  }
}
