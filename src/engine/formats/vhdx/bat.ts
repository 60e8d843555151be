/**
 * The block allocation table (section 2.5) in memory: pages of it, so that memory stays bounded however large the disk,
 * and what of it is changed. Changes reach the file through the log, by 4 KiB sectors.
 */
import type { Storage } from '../../storage/storage.js';
import { BAT_ENTRY_SIZE, BlockState, LOG_SECTOR, MIB } from './layout.js';
import type { SectorChange } from './log.js';

const PAGE = 64 * 1024;
const ENTRIES_PER_PAGE = PAGE / BAT_ENTRY_SIZE;
const ENTRIES_PER_SECTOR = LOG_SECTOR / BAT_ENTRY_SIZE;
/** Pages in memory, those with changes not counted: 16 MiB, the whole table of a disk of 2 TiB with blocks of 1 MiB. */
const MAX_PAGES = 256;

/** A page as 32-bit halves, low one first, in the machine's order. */
interface Page {
  readonly index: number;
  readonly words: Uint32Array;
  /** Changed sectors that are not in the file yet: such a page stays in memory. */
  pinned: number;
}

const LITTLE = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

/** To and from the machine's byte order. */
function ordered(bytes: Uint8Array): Uint8Array {
  if (!LITTLE) Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).swap32();
  return bytes;
}

/** The offset in the file that an entry has, from its two halves; at most 2^64, exact as it is a multiple of 1 MiB. */
export function offsetOf(low: number, high: number): number {
  return high * 2 ** 32 + (low - (low % MIB));
}

export class Bat {
  readonly #file: Storage;
  /** Offset in the file. */
  readonly at: number;
  readonly entries: number;
  readonly #pages = new Map<number, Page>();
  readonly #loading = new Map<number, Promise<void>>();
  #last: Page | undefined;
  /** Sectors, by index, that differ from the file and from the log. */
  #dirty = new Set<number>();

  constructor(file: Storage, at: number, entries: number) {
    this.#file = file;
    this.at = at;
    this.entries = entries;
  }

  /** Makes sure of the page that an entry is in: undefined where it is in memory already. */
  need(entry: number): Promise<void> | undefined {
    const index = Math.floor(entry / ENTRIES_PER_PAGE);
    if (this.#last?.index === index || this.#pages.has(index)) return undefined;
    let loading = this.#loading.get(index);
    if (loading === undefined) {
      loading = this.#load(index).finally(() => this.#loading.delete(index));
      this.#loading.set(index, loading);
    }
    return loading;
  }

  async #load(index: number): Promise<void> {
    const bytes = new Uint8Array(PAGE);
    await this.#file.read(this.at + index * PAGE, bytes);
    ordered(bytes);
    this.#pages.set(index, { index, words: new Uint32Array(bytes.buffer), pinned: 0 });
    this.#evict(index);
  }

  #evict(keep: number): void {
    for (const [index, page] of this.#pages) {
      if (this.#pages.size <= MAX_PAGES) return;
      if (page.pinned > 0 || index === keep) continue;
      this.#pages.delete(index);
      if (this.#last === page) this.#last = undefined;
    }
  }

  /** The page of an entry, which `need` has made sure of. */
  #page(entry: number): Page {
    const index = Math.floor(entry / ENTRIES_PER_PAGE);
    if (this.#last?.index === index) return this.#last;
    const page = this.#pages.get(index)!;
    // The least recently used comes first.
    this.#pages.delete(index);
    this.#pages.set(index, page);
    this.#last = page;
    return page;
  }

  /** One of BlockState. */
  state(entry: number): number {
    return this.#page(entry).words[(entry % ENTRIES_PER_PAGE) * 2]! & 7;
  }

  /** Where the block is in the file. */
  offset(entry: number): number {
    const { words } = this.#page(entry);
    const word = (entry % ENTRIES_PER_PAGE) * 2;
    return offsetOf(words[word]!, words[word + 1]!);
  }

  /** The block is there, at this offset, from now on. */
  setPresent(entry: number, at: number): void {
    const page = this.#page(entry);
    const word = (entry % ENTRIES_PER_PAGE) * 2;
    page.words[word] = (at % 2 ** 32) + BlockState.fullyPresent;
    page.words[word + 1] = Math.floor(at / 2 ** 32);
    const sector = Math.floor(entry / ENTRIES_PER_SECTOR);
    if (this.#dirty.has(sector)) return;
    this.#dirty.add(sector);
    page.pinned++;
  }

  /** Sectors with changes that are neither in the log nor in the file. */
  get dirtySectors(): number {
    return this.#dirty.size;
  }

  /** Up to `most` changed sectors as they are now; they count as unchanged from here on, until `failed` or `written`. */
  take(most: number): SectorChange[] {
    const changes: SectorChange[] = [];
    for (const sector of [...this.#dirty].sort((a, b) => a - b).slice(0, most)) {
      const page = this.#page(sector * ENTRIES_PER_SECTOR);
      const from = (sector * LOG_SECTOR) % PAGE;
      const bytes = new Uint8Array(page.words.buffer, from, LOG_SECTOR).slice();
      changes.push({ at: this.at + sector * LOG_SECTOR, data: ordered(bytes) });
      this.#dirty.delete(sector);
    }
    return changes;
  }

  /** What was taken is in the file. */
  written(changes: readonly SectorChange[]): void {
    for (const { at } of changes) this.#page((at - this.at) / BAT_ENTRY_SIZE).pinned--;
    this.#evict(-1);
  }

  /** What was taken is not in the file: it counts as changed again. */
  failed(changes: readonly SectorChange[]): void {
    for (const { at } of changes) {
      const sector = (at - this.at) / LOG_SECTOR;
      // Changed anew meanwhile: then it was pinned twice.
      if (this.#dirty.has(sector)) this.#page(sector * ENTRIES_PER_SECTOR).pinned--;
      else this.#dirty.add(sector);
    }
  }
}
