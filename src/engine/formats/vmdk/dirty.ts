/**
 * Grain tables that were changed in memory, and how they reach the file: what they point to is made durable first. The
 * redundant tables are written with them.
 */
import type { SparseExtent } from './extent.js';
import { bytesOfWords, SECTOR } from './layout.js';
import { brokenTable, type GrainTables } from './tables.js';

/** So many changed tables are held before they are written: 8 MiB where they have 512 entries. */
const MAX_DIRTY = 4096;
/** Tables are written so many at a time. */
const IN_FLIGHT = 8;

interface DirtyTable {
  readonly extent: SparseExtent;
  readonly index: number;
  readonly table: Uint32Array;
  /** Entries [from, to) differ from the file. */
  from: number;
  to: number;
}

const idOf = (extent: SparseExtent, index: number) => extent.index * 2 ** 32 + index;

export class DirtyTables {
  readonly #tables: GrainTables;
  /** Makes everything durable that was written before, guest data included. */
  readonly #barrier: () => Promise<void>;
  readonly #dirty = new Map<number, DirtyTable>();
  #running: Promise<void> = Promise.resolve();

  constructor(tables: GrainTables, barrier: () => Promise<void>) {
    this.#tables = tables;
    this.#barrier = barrier;
  }

  /** Entries [from, to) of a table that is in memory were changed, in this turn. */
  mark(extent: SparseExtent, index: number, table: Uint32Array, from: number, to: number): void {
    const id = idOf(extent, index);
    const known = this.#dirty.get(id);
    if (known === undefined) {
      this.#dirty.set(id, { extent, index, table, from, to });
      this.#tables.pin(extent, index, table);
    } else {
      known.from = Math.min(known.from, from);
      known.to = Math.max(known.to, to);
    }
  }

  get crowded(): boolean {
    return this.#dirty.size >= MAX_DIRTY;
  }

  /** Writes what is dirty now, after what it points to. What is marked meanwhile is for the next time. */
  write(): Promise<void> {
    const run = this.#running.then(() => this.#write());
    this.#running = run.catch(() => {});
    return run;
  }

  async #write(): Promise<void> {
    // Copies of now: what is linked during the barrier is not covered by it.
    const batch = [...this.#dirty.values()].map((entry) => ({
      entry,
      raw: bytesOfWords(entry.table, entry.from, entry.to),
    }));
    this.#dirty.clear();
    let next = 0;
    let failure: unknown;
    const done = new Set<DirtyTable>();
    const each = async () => {
      while (next < batch.length && failure === undefined) {
        const { entry, raw } = batch[next++]!;
        try {
          await this.#writeTable(entry, raw);
          done.add(entry);
        } catch (error) {
          failure ??= error;
        }
      }
    };
    try {
      await this.#barrier();
      await Promise.all(Array.from({ length: Math.min(IN_FLIGHT, batch.length) }, each));
      if (failure !== undefined) throw failure;
    } catch (error) {
      for (const { entry } of batch) {
        if (!done.has(entry)) this.mark(entry.extent, entry.index, entry.table, entry.from, entry.to);
      }
      throw error;
    }
  }

  async #writeTable(entry: DirtyTable, raw: Buffer): Promise<void> {
    const { extent, index, table, from } = entry;
    const sector = await this.#tables.sector(extent, index);
    const backup = await this.#tables.backupSector(extent, index);
    if (sector < 0) {
      const within = index * extent.entriesPerTable * extent.grain;
      throw brokenTable(extent, within, 'The grain table is gone');
    }
    await extent.storage.write(sector * SECTOR + from * 4, raw);
    if (backup >= 0 && backup !== sector) await extent.storage.write(backup * SECTOR + from * 4, raw);
    if (!this.#dirty.has(idOf(extent, index))) this.#tables.unpin(extent, index, table, sector);
  }
}
