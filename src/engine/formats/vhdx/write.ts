/**
 * Writing: new blocks go to the end of the file; the BAT learns of them through the log.
 *
 * Entries of the BAT change in memory when a block's data was written. A writeback takes what has changed (a 4 KiB sector
 * holds 512 entries) and makes it durable with one log entry, which is a log by itself, under a GUID of its own:
 *
 *   1. The entry is written to the half of the log that is not in use. The file is as long as its blocks reach already.
 *   2. Flush: data, entry, and the BAT as the entry before it had it are on stable storage.
 *   3. The other header gets the entry's GUID, flush: from now on the entry counts.
 *   4. The sectors are written to the BAT. Nothing waits for them: the entry says the same.
 *
 * Before the image is left alone (flush, close) comes a flush, then a header with no GUID, and a flush: the log is empty.
 */
import { ImageError } from '../../error.js';
import type { WriteTarget } from '../../node/driver.js';
import type { MaybePromise, Range, Storage } from '../../storage/storage.js';
import type { Bat } from './bat.js';
import { type Headers, newGuid } from './header.js';
import {
  BlockState,
  chunkRatio,
  entryOfBlock,
  HEADER_SECTION_SIZE,
  LOG_SECTOR,
  MIB,
  NO_GUID,
} from './layout.js';
import { encodeEntry, type SectorChange } from './log.js';
import type { Region } from './regions.js';

/** One target covers at most this many guest bytes, but always what is left of its block. */
const MAX_TARGET = 16 * MIB;
/** Sectors of the BAT in one log entry at most: with them it takes half of the smallest log there is. */
export const MAX_CHANGES = 120;
const WRITES_IN_FLIGHT = 8;

export interface WriterParts {
  readonly file: Storage;
  readonly headers: Headers;
  readonly log: Region;
  readonly bat: Bat;
  readonly size: number;
  readonly blockSize: number;
}

export class Writer {
  readonly #parts: WriterParts;
  readonly #ratio: number;
  /** End of what is given out: new blocks begin here. Multiple of 1 MiB. */
  #end: number;
  /** Blocks, by index, that have a place and are not in the BAT yet. */
  readonly #placed = new Map<number, number>();
  /** The file is made longer once at a time. */
  #growing: Promise<unknown> = Promise.resolve();
  #begun = false;
  #beginning: Promise<void> | undefined;
  #running: Promise<void> | undefined;
  /** The half of the log that the next entry goes to. */
  #half = 0;
  #sequence = 1n;

  constructor(parts: WriterParts) {
    this.#parts = parts;
    this.#ratio = chunkRatio(parts.blockSize);
    this.#end = Math.ceil(parts.file.size / MIB) * MIB;
  }

  prepareWrite(range: Range): MaybePromise<WriteTarget> {
    const waits = this.#missing(range);
    return waits === undefined ? this.#target(range) : this.#later(range, waits);
  }

  async #later(range: Range, waits: Promise<void>): Promise<WriteTarget> {
    for (let pending: Promise<void> | undefined = waits; pending !== undefined; ) {
      await pending;
      pending = this.#missing(range);
    }
    return this.#target(range);
  }

  /** What must be waited for before the first block of a range can be looked at. */
  #missing({ at }: Range): Promise<void> | undefined {
    if (!this.#begun) return this.begin();
    const { bat, blockSize } = this.#parts;
    return bat.need(entryOfBlock(Math.floor(at / blockSize), this.#ratio));
  }

  /** Says in the header that this file is being changed, once (2.2.2, FileWriteGuid and DataWriteGuid). */
  begin(): Promise<void> {
    this.#beginning ??= this.#begin().catch((error: unknown) => {
      this.#beginning = undefined;
      throw error;
    });
    return this.#beginning;
  }

  async #begin(): Promise<void> {
    const { headers, log, file } = this.#parts;
    // Half of it must have room for an entry, and it must be there: a log past the end would be a hole of any size.
    if (log.length < MIB || log.at + log.length > file.size) {
      throw new ImageError('corrupt', 'Invalid argument', {
        path: file.filename,
        errno: 'EINVAL',
        check: 'log',
      });
    }
    await headers.update({ fileWriteGuid: newGuid(), dataWriteGuid: newGuid(), logGuid: NO_GUID });
    this.#begun = true;
  }

  /** Where the first bytes of the range go: blocks that follow each other in the file, or that have no place yet. */
  #target({ at, length }: Range): MaybePromise<WriteTarget> {
    const { file, blockSize } = this.#parts;
    const first = Math.floor(at / blockSize);
    const within = at - first * blockSize;
    const wanted = Math.ceil(
      (within + Math.min(length, Math.max(MAX_TARGET, blockSize - within))) / blockSize,
    );
    const start = this.#placeOf(first);
    let count = 1;
    for (; count < wanted && this.#follows(first + count, start, count); count++);
    const covered = Math.min(length, count * blockSize - within);
    if (start !== undefined) {
      const target = { storage: file, at: start + within, length: covered, fillBefore: 0, fillAfter: 0 };
      if (!this.#anyPlaced(first, count)) return target;
      // Blocks that another write has placed: whoever is done first links them. Not before that one has made the file longer,
      // and behind it: the host allocates best in order.
      return this.#growing.then(() => ({ ...target, commit: () => this.link(first, count) }));
    }
    return this.#allocate(first, count).then((host) => ({
      storage: file,
      at: host + within,
      length: covered,
      fillBefore: 0,
      fillAfter: 0,
      commit: () => this.link(first, count),
    }));
  }

  #anyPlaced(first: number, count: number): boolean {
    if (this.#placed.size === 0) return false;
    for (let block = first; block < first + count; block++) if (this.#placed.has(block)) return true;
    return false;
  }

  /** Whether the next block of a run continues it: in the file, or as one more that has no place. */
  #follows(block: number, start: number | undefined, count: number): boolean {
    const { bat, blockSize } = this.#parts;
    if (bat.need(entryOfBlock(block, this.#ratio)) !== undefined) return false;
    const place = this.#placeOf(block);
    return start === undefined ? place === undefined : place === start + count * blockSize;
  }

  /** Where a block is; undefined where it is nowhere yet. */
  #placeOf(block: number): number | undefined {
    const placed = this.#placed.get(block);
    if (placed !== undefined) return placed;
    const { bat, file } = this.#parts;
    const entry = entryOfBlock(block, this.#ratio);
    switch (bat.state(entry)) {
      case BlockState.notPresent:
      case BlockState.undefined:
      case BlockState.zero:
      case BlockState.unmapped:
      case BlockState.unmappedDraft:
        return undefined;
      case BlockState.fullyPresent: {
        const at = bat.offset(entry);
        if (at >= HEADER_SECTION_SIZE) return at;
        break;
      }
    }
    throw unusable(file, bat.at);
  }

  /**
   * Places blocks at the end of the file, which is made longer before anything is written there: what nobody writes in them
   * reads as zeros, and no cut of the file races with a write.
   */
  async #allocate(first: number, count: number): Promise<number> {
    const { blockSize, file } = this.#parts;
    const host = this.#end;
    const end = host + count * blockSize;
    this.#end = end;
    for (let index = 0; index < count; index++) this.#placed.set(first + index, host + index * blockSize);
    const growing = this.#growing.then(() => (file.size < end ? file.truncate(end) : undefined));
    this.#growing = growing.catch(() => {});
    try {
      await growing;
    } catch (error) {
      for (let index = 0; index < count; index++) this.#placed.delete(first + index);
      throw error;
    }
    return host;
  }

  /** The blocks' data is written: they belong into the BAT. */
  link(first: number, count: number): MaybePromise<void> {
    const { bat } = this.#parts;
    for (let block = first; block < first + count; block++) {
      const entry = entryOfBlock(block, this.#ratio);
      const waits = bat.need(entry);
      if (waits !== undefined) return waits.then(() => this.link(block, first + count - block));
      const at = this.#placed.get(block);
      // Another write to the block was faster.
      if (at === undefined) continue;
      bat.setPresent(entry, at);
      this.#placed.delete(block);
    }
    return bat.dirtySectors >= MAX_CHANGES ? this.#writeback() : undefined;
  }

  /** Zeros in the blocks that are there; the others are zeros. */
  async zero({ at, length }: Range, unmap: boolean): Promise<void> {
    const { bat, blockSize, file } = this.#parts;
    if (!this.#begun) await this.begin();
    for (let done = 0; done < length; ) {
      const block = Math.floor((at + done) / blockSize);
      const within = at + done - block * blockSize;
      const part = Math.min(length - done, blockSize - within);
      const entry = entryOfBlock(block, this.#ratio);
      for (let waits = bat.need(entry); waits !== undefined; waits = bat.need(entry)) await waits;
      const place = this.#placeOf(block);
      if (place !== undefined) await file.zero({ at: place + within, length: part }, { unmap });
      done += part;
    }
  }

  /** Everything into the file, durably; the log is empty after. */
  async flush(): Promise<void> {
    const { file, headers } = this.#parts;
    await this.#writeback();
    while (this.#running !== undefined) await this.#running;
    if (headers.logEmpty || !this.#begun) return file.flush();
    await this.#alone(async () => {
      await file.flush();
      await headers.update({ logGuid: NO_GUID });
    });
  }

  /** What is dirty now goes through the log and into the BAT. */
  async #writeback(): Promise<void> {
    while (this.#running !== undefined) await this.#running;
    if (this.#parts.bat.dirtySectors === 0) return;
    await this.#alone(async () => {
      while (this.#parts.bat.dirtySectors > 0) await this.#commit();
    });
  }

  /** Runs what changes the log; nothing else may run. */
  async #alone(work: () => Promise<void>): Promise<void> {
    const running = work();
    const gate = running.catch(() => {});
    this.#running = gate;
    try {
      await running;
    } finally {
      if (this.#running === gate) this.#running = undefined;
    }
  }

  /** One log entry: see above. */
  async #commit(): Promise<void> {
    const { bat, file, headers, log } = this.#parts;
    const changes = bat.take(MAX_CHANGES);
    try {
      const half = Math.floor(log.length / 2 / LOG_SECTOR) * LOG_SECTOR;
      const at = this.#half * half;
      const logGuid = newGuid();
      const entry = { at, sequence: this.#sequence, logGuid, fileSize: file.size };
      await file.write(log.at + at, encodeEntry(entry, changes));
      await file.flush();
      await headers.update({ logGuid });
      this.#half = 1 - this.#half;
      this.#sequence++;
      await writeRuns(file, changes);
    } catch (error) {
      bat.failed(changes);
      throw error;
    }
    bat.written(changes);
  }
}

/** Sectors that follow each other are written together. */
async function writeRuns(file: Storage, changes: readonly SectorChange[]): Promise<void> {
  const runs: { at: number; parts: Uint8Array[] }[] = [];
  for (const { at, data } of changes) {
    const last = runs.at(-1);
    if (last !== undefined && last.at + last.parts.length * LOG_SECTOR === at) last.parts.push(data);
    else runs.push({ at, parts: [data] });
  }
  for (let from = 0; from < runs.length; from += WRITES_IN_FLIGHT) {
    const some = runs.slice(from, from + WRITES_IN_FLIGHT);
    const results = await Promise.allSettled(
      some.map(({ at, parts }) => file.write(at, Buffer.concat(parts))),
    );
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }
}

/** An entry that cannot be read nor written through. */
export function unusable(file: Storage, at: number): ImageError {
  return new ImageError('corrupt', 'Input/output error', {
    path: file.filename,
    offset: at,
    errno: 'EIO',
    check: 'block state',
  });
}
