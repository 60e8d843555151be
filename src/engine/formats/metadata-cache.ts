/**
 * Metadata in memory: bounded caches of table clusters, and the order in which what is dirty reaches the file. The order
 * is declared, stage by stage (`after`), and `Writeback` puts a storage flush wherever a declaration asks for one.
 */
import type { Storage } from '../storage/storage.js';

/** One table (a cluster) in memory. Whoever changes it calls `markDirty` in the same turn. */
export interface CachedTable<T> {
  /** Host offset, a multiple of the cluster size. */
  readonly at: number;
  readonly table: T;
  /** Bytes of the table that differ from the file: [dirtyFrom, dirtyTo). */
  dirtyFrom: number;
  dirtyTo: number;
}

/** How a table is kept in memory. */
export interface TableForm<T> {
  fromDisk(bytes: Uint8Array): T;
  /** A copy in disk order; `from` and `to` are bytes, multiples of a sector. */
  toDisk(table: T, from: number, to: number): Uint8Array;
  /** What the storage hears before a table is read, and before one is written. */
  readonly events: { readonly load: string; readonly update: string };
}

/** Tables are written in whole sectors. */
const SECTOR = 512;
/** Tables that follow each other in the file are written together, up to this. */
const MAX_BATCH_BYTES = 1 << 20;
/** Table writes in flight at once. */
const WRITES_IN_FLIGHT = 8;

export class TableCache<T> {
  readonly #file: Storage;
  readonly #tableBytes: number;
  readonly #limit: number;
  readonly #form: TableForm<T>;
  /** Least recently used first. */
  readonly #tables = new Map<number, CachedTable<T>>();
  readonly #loading = new Map<number, Promise<void>>();
  readonly #dirty = new Set<CachedTable<T>>();
  #last: CachedTable<T> | undefined;

  /** At most `limitBytes` of tables that are clean; dirty ones count, but stay until they are written. */
  constructor(file: Storage, tableBytes: number, limitBytes: number, form: TableForm<T>) {
    this.#file = file;
    this.#tableBytes = tableBytes;
    // Not less than a few tables, however large clusters are: parallel requests would evict each other's.
    this.#limit = Math.max(16, Math.floor(limitBytes / tableBytes));
    this.#form = form;
  }

  get dirty(): boolean {
    return this.#dirty.size > 0;
  }

  /** More tables are dirty than the cache should hold: time for a writeback. */
  get crowded(): boolean {
    return this.#dirty.size >= this.#limit;
  }

  /** The table at host offset `at` where it is in memory. */
  peek(at: number): CachedTable<T> | undefined {
    if (this.#last?.at === at) return this.#last;
    const found = this.#tables.get(at);
    if (found === undefined) return undefined;
    this.#tables.delete(at);
    this.#tables.set(at, found);
    this.#last = found;
    return found;
  }

  /** The table at host offset `at`, or what has to be waited for before asking again. */
  get(at: number): CachedTable<T> | Promise<void> {
    return this.peek(at) ?? this.load(at);
  }

  has(at: number): boolean {
    return this.#tables.has(at);
  }

  /** Brings a table into memory; `peek` has it when the promise is fulfilled. */
  load(at: number): Promise<void> {
    let loading = this.#loading.get(at);
    if (loading === undefined) {
      const reading: Promise<void> = this.#read(at, () => this.#loading.get(at) === reading).finally(() => {
        if (this.#loading.get(at) === reading) this.#loading.delete(at);
      });
      loading = reading;
      // Not all who start a load wait for it (map answers with what it has); who needs the table asks again, and gets the error.
      loading.catch(() => {});
      this.#loading.set(at, loading);
    }
    return loading;
  }

  async #read(at: number, wanted: () => boolean): Promise<void> {
    const bytes = new Uint8Array(this.#tableBytes);
    this.#file.event?.(this.#form.events.load, at);
    await this.#file.read(at, bytes);
    // The table may have been freed meanwhile, and a new one have taken its place: then that is the one that counts.
    if (wanted() && !this.#tables.has(at)) this.#insert(at, this.#form.fromDisk(bytes));
  }

  #insert(at: number, table: T): CachedTable<T> {
    const entry = { at, table, dirtyFrom: 0, dirtyTo: 0 };
    this.#tables.set(at, entry);
    if (this.#tables.size > this.#limit) this.#evict(entry);
    return entry;
  }

  /** Puts a table that is new into memory, dirty as a whole. */
  add(at: number, table: T): CachedTable<T> {
    this.drop(at);
    const entry = this.#insert(at, table);
    this.markDirty(entry, 0, this.#tableBytes);
    return entry;
  }

  /** Forgets a table whose cluster was freed. */
  drop(at: number): void {
    this.#loading.delete(at);
    const entry = this.#tables.get(at);
    if (entry === undefined) return;
    this.#tables.delete(at);
    this.#dirty.delete(entry);
    if (this.#last === entry) this.#last = undefined;
  }

  /** Forgets everything; nothing may be dirty. */
  clear(): void {
    this.#tables.clear();
    this.#dirty.clear();
    this.#last = undefined;
  }

  /** `keep` was asked for just now: whoever did must find it, even where all others are dirty. */
  #evict(keep?: CachedTable<T>): void {
    for (const [at, entry] of this.#tables) {
      if (this.#tables.size <= this.#limit) return;
      if (entry.dirtyTo > 0 || entry === keep) continue;
      this.#tables.delete(at);
      if (this.#last === entry) this.#last = undefined;
    }
  }

  /** Bytes [from, to) of the table were changed. */
  markDirty(entry: CachedTable<T>, from: number, to: number): void {
    if (entry.dirtyTo === 0) {
      entry.dirtyFrom = from;
      entry.dirtyTo = to;
      this.#dirty.add(entry);
      return;
    }
    if (from < entry.dirtyFrom) entry.dirtyFrom = from;
    if (to > entry.dirtyTo) entry.dirtyTo = to;
  }

  /** Writes what is dirty now. A table that fails to be written stays dirty. */
  async write(): Promise<void> {
    const work = this.#batches();
    let next = 0;
    let failure: unknown;
    const worker = async () => {
      while (next < work.length && failure === undefined) {
        try {
          await this.#writeBatch(work[next++]!);
        } catch (error) {
          failure ??= error;
        }
      }
    };
    await Promise.all(Array.from({ length: Math.min(WRITES_IN_FLIGHT, work.length) }, worker));
    if (failure !== undefined) throw failure;
    this.#evict();
  }

  /** Dirty tables in file order; those whose dirty parts touch are written together. */
  #batches(): CachedTable<T>[][] {
    const bytes = this.#tableBytes;
    const batches: CachedTable<T>[][] = [];
    let previous: CachedTable<T> | undefined;
    for (const entry of [...this.#dirty].sort((a, b) => a.at - b.at)) {
      const batch = batches.at(-1);
      const joins =
        previous !== undefined &&
        entry.at === previous.at + bytes &&
        entry.dirtyFrom === 0 &&
        previous.dirtyTo === bytes &&
        batch!.length * bytes < MAX_BATCH_BYTES;
      if (joins) batch!.push(entry);
      else batches.push([entry]);
      previous = entry;
    }
    return batches;
  }

  async #writeBatch(batch: readonly CachedTable<T>[]): Promise<void> {
    if (batch.some((entry) => !this.#dirty.has(entry))) {
      // One was freed since the list was made: its place may be somebody else's by now, and the run is broken.
      for (const entry of batch) if (this.#dirty.has(entry)) await this.#writeBatch([entry]);
      return;
    }
    // Dirty parts only grow until they are written: what touched when the batch was made touches still.
    const parts = batch.map((entry) => ({
      entry,
      from: Math.floor(entry.dirtyFrom / SECTOR) * SECTOR,
      to: Math.min(this.#tableBytes, Math.ceil(entry.dirtyTo / SECTOR) * SECTOR),
    }));
    // Copies, so that changes made during the write neither tear it nor get lost.
    const copies = parts.map(({ entry, from, to }) => this.#form.toDisk(entry.table, from, to));
    for (const { entry } of parts) {
      entry.dirtyFrom = 0;
      entry.dirtyTo = 0;
      this.#dirty.delete(entry);
    }
    const first = parts[0]!;
    try {
      const whole = copies.length === 1 ? copies[0]! : Buffer.concat(copies);
      this.#file.event?.(this.#form.events.update, first.entry.at + first.from);
      await this.#file.write(first.entry.at + first.from, whole);
    } catch (error) {
      for (const { entry, from, to } of parts)
        if (this.#tables.has(entry.at)) this.markDirty(entry, from, to);
      throw error;
    }
  }
}

/** A kind of metadata that is written together, and what has to be on stable storage before it. */
export interface Stage {
  readonly name: string;
  readonly after: readonly Stage[];
  dirty(): boolean;
  write(): Promise<void>;
}

/** All tables of a cache. */
export function tableStage<T>(name: string, after: readonly Stage[], cache: TableCache<T>): Stage {
  return { name, after, dirty: () => cache.dirty, write: () => cache.write() };
}

/** Guest data: the access path writes it, and nobody knows whether it has reached stable storage. */
export const GUEST_DATA: Stage = {
  name: 'guest data',
  after: [],
  dirty: () => false,
  write: async () => {},
};

export class Writeback {
  readonly #stages: readonly Stage[];
  readonly #barrier: () => Promise<void>;
  #running: Promise<void> | undefined;

  /** `stages` in an order that agrees with their declarations; `barrier` makes all that was written durable. */
  constructor(stages: readonly Stage[], barrier: () => Promise<void>) {
    this.#stages = stages;
    this.#barrier = barrier;
  }

  /**
   * Set while a writeback runs. References (L1, L2) must not change until it is done: their order against the refcounts
   * was settled when it began.
   */
  get running(): Promise<void> | undefined {
    return this.#running;
  }

  /** Writes everything that is dirty, in order, and flushes. Two callers at once share what is left to do. */
  async run(): Promise<void> {
    while (this.#running !== undefined) await this.#running.catch(() => {});
    const work = this.#work();
    // Those who wait at the gate only want to know when it opens; the error is for whoever asked for the writeback.
    this.#running = work.catch(() => {});
    try {
      await work;
    } finally {
      this.#running = undefined;
    }
  }

  async #work(): Promise<void> {
    const unflushed = new Set<Stage>([GUEST_DATA]);
    for (const stage of this.#stages) {
      if (!stage.dirty()) continue;
      if (stage.after.some((earlier) => unflushed.has(earlier))) {
        await this.#barrier();
        unflushed.clear();
      }
      await stage.write();
      unflushed.add(stage);
    }
    await this.#barrier();
  }
}
