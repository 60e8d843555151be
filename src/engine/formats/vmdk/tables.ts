/**
 * Grain directories and grain tables: read when needed, held in one bounded cache for all extents of an image. A directory
 * is not read whole, because its length is whatever a header says: it is held in pages, as the tables are.
 */
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import type { SparseExtent } from './extent.js';
import {
  grainSector,
  INVALID,
  SECTOR,
  seGrainSector,
  seTableSector,
  tableSector,
  UNALLOCATED,
  wordsOf,
  ZEROED,
} from './layout.js';

/** Bytes of tables that an image holds; with grains of 64 KiB in full tables that maps 128 GiB. */
const CACHE_BYTES = 8 * 1024 * 1024;
/** What an entry costs beyond its words. */
const ENTRY_OVERHEAD = 256;
const DIRECTORY_PAGE = 32 * 1024;
/** Tables that follow each other in the file are read together, up to this much. */
const READ_AHEAD = 64 * 1024;
/** Cache keys: extent times this, plus a table's first sector, or 2^32 and a directory page's number. */
const KEYS_PER_EXTENT = 2 ** 33;
/** Keys of pages of redundant directories are this much higher; a directory has 2^25 entries at most. */
const BACKUP_PAGES = 2 ** 30;

/** Stands for a table that is not there: none of its grains is allocated. */
export const ABSENT = new Uint32Array(0);

export function brokenTable(extent: SparseExtent, within: number, what: string): ImageError {
  return new ImageError('corrupt', `${what} (extent '${extent.storage.filename}', offset ${within})`, {
    path: extent.storage.filename,
    offset: within,
    errno: 'EIO',
  });
}

/** Least recently used tables go first. */
class WordCache {
  readonly #held = new Map<number, Uint32Array>();
  #bytes = 0;
  #lastKey = -1;
  #last: Uint32Array = ABSENT;

  get bytes(): number {
    return this.#bytes;
  }

  get(key: number): Uint32Array | undefined {
    if (key === this.#lastKey) return this.#last;
    const words = this.#held.get(key);
    if (words === undefined) return undefined;
    this.#held.delete(key);
    this.#held.set(key, words);
    this.#lastKey = key;
    this.#last = words;
    return words;
  }

  has(key: number): boolean {
    return this.#held.has(key);
  }

  put(key: number, words: Uint32Array): void {
    if (this.#held.has(key)) return;
    this.#insert(key, words);
  }

  /** What was held for that key is not true any more. */
  replace(key: number, words: Uint32Array): void {
    this.remove(key);
    this.#insert(key, words);
  }

  remove(key: number): void {
    const words = this.#held.get(key);
    if (words === undefined) return;
    this.#held.delete(key);
    this.#bytes -= words.byteLength + ENTRY_OVERHEAD;
    if (this.#lastKey === key) this.#lastKey = -1;
  }

  removeFrom(first: number, count: number): void {
    for (const key of this.#held.keys()) if (key >= first && key < first + count) this.remove(key);
  }

  #insert(key: number, words: Uint32Array): void {
    this.#held.set(key, words);
    this.#bytes += words.byteLength + ENTRY_OVERHEAD;
    for (const [oldest, old] of this.#held) {
      if (this.#bytes <= CACHE_BYTES || oldest === key) break;
      this.#held.delete(oldest);
      this.#bytes -= old.byteLength + ENTRY_OVERHEAD;
    }
  }
}

export class GrainTables {
  readonly #tables = new WordCache();
  readonly #pages = new WordCache();
  readonly #loading = new Map<number, Promise<Uint32Array>>();
  /** Tables that were changed and are not in the file yet, by extent and index: they are what counts. */
  readonly #pinned = new Map<number, Uint32Array>();
  /** Directory entries that are newer than what a page may say. */
  readonly #moved = new Map<number, number>();
  /** Counts changes of tables in files: what was read across one may be old. */
  #changes = 0;

  /** Bytes held now; bounded whatever the image says. */
  get heldBytes(): number {
    return this.#tables.bytes + this.#pages.bytes;
  }

  /** Table `index` of the extent if it is at hand, ABSENT where there is none, undefined where `load` must be called. */
  cached(extent: SparseExtent, index: number): Uint32Array | undefined {
    if (this.#pinned.size > 0) {
      const pinned = this.#pinned.get(tableId(extent, index));
      if (pinned !== undefined) return pinned;
    }
    const moved = this.#moved.size > 0 ? this.#moved.get(tableId(extent, index)) : undefined;
    if (moved !== undefined) return this.#tables.get(tableKey(extent, moved));
    const page = this.#pages.get(pageKey(extent, index));
    if (page === undefined) return undefined;
    const sector = sectorIn(extent, page, index);
    return sector < 0 ? ABSENT : this.#tables.get(tableKey(extent, sector));
  }

  /** The same, reading what is missing. Throws `corrupt` for a directory entry that makes no sense. */
  async load(extent: SparseExtent, index: number): Promise<Uint32Array> {
    const pinned = this.#pinned.get(tableId(extent, index));
    if (pinned !== undefined) return pinned;
    const page = await this.#page(extent, index);
    const moved = this.#moved.get(tableId(extent, index));
    const sector = moved ?? sectorIn(extent, page, index);
    if (sector < 0) return ABSENT;
    const held = this.#tables.get(tableKey(extent, sector));
    return held ?? this.#loadTables(extent, moved === undefined ? page : undefined, index, sector);
  }

  async #page(extent: SparseExtent, index: number): Promise<Uint32Array> {
    return this.#pages.get(pageKey(extent, index)) ?? this.#loadPage(extent, index, extent.directoryAt, 0);
  }

  /** First sector of table `index`, or below zero where there is none. */
  async sector(extent: SparseExtent, index: number): Promise<number> {
    const page = await this.#page(extent, index);
    return this.#moved.get(tableId(extent, index)) ?? sectorIn(extent, page, index);
  }

  /** First sector of the redundant table `index`, or below zero where there is none. */
  async backupSector(extent: SparseExtent, index: number): Promise<number> {
    if (extent.backupAt === undefined) return UNALLOCATED;
    const key = pageKey(extent, index) + BACKUP_PAGES;
    const page = this.#pages.get(key) ?? (await this.#loadPage(extent, index, extent.backupAt, BACKUP_PAGES));
    return sectorIn(extent, page, index);
  }

  /** The table was changed: it is held, and is what counts, until `unpin`. */
  pin(extent: SparseExtent, index: number, table: Uint32Array): void {
    this.#pinned.set(tableId(extent, index), table);
  }

  /** The table is in the file, at that sector. */
  unpin(extent: SparseExtent, index: number, table: Uint32Array, sector: number): void {
    this.#changes++;
    this.#pinned.delete(tableId(extent, index));
    this.#tables.replace(tableKey(extent, sector), table);
  }

  /** Table `index` is at another sector from now on. */
  move(extent: SparseExtent, index: number, sector: number): void {
    this.#moved.set(tableId(extent, index), sector);
  }

  /** A new, empty table is in the file at `sector`, and at `backup` as the redundant one, and entered in the directories. */
  entered(extent: SparseExtent, index: number, sector: number, backup: number): void {
    const slot = index % entriesPerPage(extent);
    const page = this.#pages.get(pageKey(extent, index));
    if (page !== undefined) page[slot] = sector;
    const second = this.#pages.get(pageKey(extent, index) + BACKUP_PAGES);
    if (second !== undefined) second[slot] = backup;
  }

  movedTo(extent: SparseExtent, index: number): number | undefined {
    return this.#moved.get(tableId(extent, index));
  }

  /** The extent has another directory, and none of its tables is in memory. */
  forget(extent: SparseExtent): void {
    this.#changes++;
    for (let first = 0; first < extent.directoryEntries; first += entriesPerPage(extent)) {
      this.#pages.remove(pageKey(extent, first));
      this.#pages.remove(pageKey(extent, first) + BACKUP_PAGES);
    }
    this.#tables.removeFrom(extent.index * KEYS_PER_EXTENT, KEYS_PER_EXTENT);
  }

  #once(key: number, read: () => Promise<Uint32Array>): Promise<Uint32Array> {
    let loading = this.#loading.get(key);
    if (loading === undefined) {
      loading = read().finally(() => this.#loading.delete(key));
      this.#loading.set(key, loading);
    }
    return loading;
  }

  #loadPage(extent: SparseExtent, index: number, from: number, keys: number): Promise<Uint32Array> {
    const key = pageKey(extent, index) + keys;
    return this.#once(key, async () => {
      const first = index - (index % entriesPerPage(extent));
      const entries = Math.min(entriesPerPage(extent), extent.directoryEntries - first);
      const width = entryBytes(extent);
      const words = await readWords(extent.storage, from + first * width, entries * width);
      this.#pages.put(key, words);
      return words;
    });
  }

  #loadTables(
    extent: SparseExtent,
    page: Uint32Array | undefined,
    index: number,
    sector: number,
  ): Promise<Uint32Array> {
    const key = tableKey(extent, sector);
    return this.#once(-1 - key, async () => {
      const bytes = extent.entriesPerTable * entryBytes(extent);
      const changes = this.#changes;
      const count = page === undefined ? 1 : this.#adjacent(extent, page, index, sector, bytes);
      const words = await readWords(extent.storage, sector * SECTOR, count * bytes);
      // Tables beside this one may have been written meanwhile; this one cannot: who changes it has it in memory.
      for (let n = changes === this.#changes ? count - 1 : 0; n > 0; n--) {
        this.#tables.put(
          tableKey(extent, sector + (n * bytes) / SECTOR),
          words.slice((n * bytes) / 4, ((n + 1) * bytes) / 4),
        );
      }
      const table = count === 1 ? words : words.slice(0, bytes / 4);
      this.#tables.put(key, table);
      return table;
    });
  }

  /** How many tables from `index` on stand one after another in the file and are worth reading at once. */
  #adjacent(extent: SparseExtent, page: Uint32Array, index: number, sector: number, bytes: number): number {
    if (bytes % SECTOR !== 0) return 1;
    const perPage = entriesPerPage(extent);
    const base = index - (index % perPage);
    const most = Math.min(
      Math.floor(READ_AHEAD / bytes),
      base + perPage - index,
      extent.directoryEntries - index,
    );
    let count = 1;
    while (count < most) {
      const next = sector + (count * bytes) / SECTOR;
      if (entrySector(extent, page, index - base + count) !== next) break;
      if (this.#tables.has(tableKey(extent, next))) break;
      count++;
    }
    return count;
  }
}

const entryBytes = (extent: SparseExtent) => (extent.wide === undefined ? 4 : 8);
const entriesPerPage = (extent: SparseExtent) => DIRECTORY_PAGE / entryBytes(extent);
const tableId = (extent: SparseExtent, index: number) => extent.index * 2 ** 32 + index;
const tableKey = (extent: SparseExtent, sector: number) => extent.index * KEYS_PER_EXTENT + sector;

function pageKey(extent: SparseExtent, index: number): number {
  if (index >= extent.directoryEntries) {
    const within = index * extent.entriesPerTable * extent.grain;
    throw brokenTable(extent, within, 'The grain directory ends before the extent does');
  }
  return extent.index * KEYS_PER_EXTENT + Math.floor(index / entriesPerPage(extent));
}

function entrySector(extent: SparseExtent, page: Uint32Array, entry: number): number {
  return extent.wide === undefined
    ? tableSector(page, entry)
    : seTableSector(page, entry, extent.wide.tablesOffset);
}

function sectorIn(extent: SparseExtent, page: Uint32Array, index: number): number {
  const sector = entrySector(extent, page, index % entriesPerPage(extent));
  if (sector === INVALID) {
    const within = index * extent.entriesPerTable * extent.grain;
    throw brokenTable(extent, within, 'Invalid grain directory entry');
  }
  return sector;
}

/** Words from a byte offset; past the end of the file they are zeros, and nothing is read there. */
async function readWords(storage: Storage, at: number, bytes: number): Promise<Uint32Array> {
  const raw = new Uint8Array(bytes);
  if (at < storage.size) await storage.read(at, raw);
  return wordsOf(raw);
}

/** What entry `index` of a table says: the sector of a grain, UNALLOCATED or ZEROED. */
function grainOf(extent: SparseExtent, table: Uint32Array, index: number): number {
  if (table.length === 0) return UNALLOCATED;
  return extent.wide === undefined
    ? grainSector(table, index, extent.zeroedGrains)
    : seGrainSector(table, index, extent.wide.grainsOffset);
}

/** What the table says of the grain at byte `within` of the extent: a sector, UNALLOCATED or ZEROED. */
export function grainAt(extent: SparseExtent, table: Uint32Array, within: number): number {
  const sector = grainOf(extent, table, Math.floor(within / extent.grain) % extent.entriesPerTable);
  if (sector === INVALID) throw brokenTable(extent, within, 'Invalid grain table entry');
  return sector;
}

/** A run of grains of one kind. */
export interface GrainRun {
  /** Sector of the first grain, UNALLOCATED or ZEROED. */
  readonly sector: number;
  /** Bytes from `within` on, > 0, no more than asked. */
  readonly length: number;
  /** Bytes of the first grain that are before `within`. */
  readonly skip: number;
}

/**
 * The run of grains at byte `within` of the extent, in the table that covers it: zeros and holes together, data as long
 * as it is contiguous in the file too. A compressed grain stands alone.
 */
export function grainRun(extent: SparseExtent, table: Uint32Array, within: number, length: number): GrainRun {
  const { grain, entriesPerTable } = extent;
  const skip = within % grain;
  const first = ((within - skip) / grain) % entriesPerTable;
  const sector = grainOf(extent, table, first);
  if (sector === INVALID) throw brokenTable(extent, within, 'Invalid grain table entry');
  let run = grain - skip;
  if (table === ABSENT) {
    run += (entriesPerTable - first - 1) * grain;
  } else if (sector < 0 || !extent.compressed) {
    const step = sector < 0 ? 0 : grain / SECTOR;
    let next = sector + step;
    for (let index = first + 1; index < entriesPerTable && run < length; index++, next += step) {
      if (grainOf(extent, table, index) !== next) break;
      run += grain;
    }
  }
  return { sector, length: Math.min(run, length), skip };
}

/** Upper bound of where a compressed grain ends, as the next entry has it; undefined where that tells nothing. */
export function nextGrainSector(
  extent: SparseExtent,
  table: Uint32Array,
  within: number,
): number | undefined {
  const index = Math.floor(within / extent.grain) % extent.entriesPerTable;
  if (index + 1 >= extent.entriesPerTable) return undefined;
  const next = grainOf(extent, table, index + 1);
  return next < 0 ? undefined : next;
}

export { UNALLOCATED, ZEROED };
