/**
 * Records what an operation does to its files. All files of one operation (image, data file, backing file) share one
 * log and one clock, so that the order across files is kept.
 *
 * Each request has a time at which it was issued and one at which it completed. What a flush makes durable follows from
 * these alone: the requests on its file that had completed when it was issued.
 */
import type {
  DataRun,
  MaybePromise,
  Preallocation,
  Range,
  Storage,
} from '../../src/engine/storage/storage.js';

const SECTOR = 512;

/** Bytes that go to the disk as one. */
export interface Piece {
  readonly at: number;
  readonly data: Uint8Array;
}

/**
 * A disk takes whole sectors. Where a request covers one in part, the host's cache puts the rest of it from what was
 * there, other requests that are still in the cache included: such sectors are recorded as what they were after the
 * request (`edges`), and only whole ones as what the request said.
 */
export type RecordedRequest =
  | {
      readonly kind: 'write';
      readonly at: number;
      readonly data: Uint8Array;
      readonly edges: readonly Piece[];
    }
  | { readonly kind: 'zero'; readonly at: number; readonly length: number; readonly edges: readonly Piece[] }
  | { readonly kind: 'discard'; readonly at: number; readonly length: number }
  | { readonly kind: 'truncate'; readonly size: number }
  | { readonly kind: 'flush' };

export interface LogEntry {
  readonly file: string;
  readonly request: RecordedRequest;
  readonly issued: number;
  /** Infinity while under way, and for ever where it failed: then it may have been done in part. */
  completed: number;
}

/** A moment that the test names: a guest write was issued, the operation reported its flush as done. */
export interface LogMark {
  readonly label: string;
  readonly time: number;
}

/** The sectors that lie wholly in a run of bytes. */
function wholeSectors(at: number, length: number): { readonly first: number; readonly last: number } {
  const first = Math.ceil(at / SECTOR) * SECTOR;
  const last = Math.floor((at + length) / SECTOR) * SECTOR;
  return { first, last: Math.max(first, last) };
}

export class CrashLog {
  readonly entries: LogEntry[] = [];
  readonly marks: LogMark[] = [];
  #time = 0;

  get time(): number {
    return this.#time;
  }

  /** Advances the clock; returns the new time. */
  tick(): number {
    this.#time += 1;
    return this.#time;
  }

  mark(label: string): number {
    const time = this.tick();
    this.marks.push({ label, time });
    return time;
  }

  async record(file: string, request: RecordedRequest, run: () => Promise<void>): Promise<void> {
    const entry: LogEntry = { file, request, issued: this.tick(), completed: Number.POSITIVE_INFINITY };
    this.entries.push(entry);
    await run();
    entry.completed = this.tick();
  }

  /** The same log as if one request had never been made. */
  without(missing: LogEntry): CrashLog {
    const copy = new CrashLog();
    copy.entries.push(...this.entries.filter((entry) => entry !== missing));
    copy.marks.push(...this.marks);
    copy.#time = this.#time;
    return copy;
  }

  /** The log as text, for the message of a failed test. */
  describe(): string[] {
    return this.entries.map((entry, index) => {
      const { request, file } = entry;
      const where =
        request.kind === 'write'
          ? ` ${request.at}+${request.data.length}${request.edges.map((edge) => ` (${edge.at})`).join('')}`
          : request.kind === 'truncate'
            ? ` ${request.size}`
            : request.kind === 'flush'
              ? ''
              : ` ${request.at}+${request.length}`;
      return `#${index} @${entry.issued}..${entry.completed} ${file}: ${request.kind}${where}`;
    });
  }
}

/** Wraps a storage; what passes through is done and recorded. Reads are not recorded. */
export class RecordingStorage implements Storage {
  readonly filename: string;
  readonly driver: string;
  readonly writable: boolean;
  readonly alignment: number;
  readonly #inner: Storage;
  readonly #log: CrashLog;
  readonly #name: string;

  /** `name` tells the files of one log apart. */
  constructor(inner: Storage, log: CrashLog, name = inner.filename) {
    this.#inner = inner;
    this.#log = log;
    this.#name = name;
    this.filename = inner.filename;
    this.driver = inner.driver;
    this.writable = inner.writable;
    this.alignment = inner.alignment;
  }

  get size(): number {
    return this.#inner.size;
  }

  allocated(): Promise<number | undefined> {
    return this.#inner.allocated();
  }

  read(at: number, into: Uint8Array): Promise<void> {
    return this.#inner.read(at, into);
  }

  write(at: number, from: Uint8Array): Promise<void> {
    const { first, last } = wholeSectors(at, from.length);
    // the caller may use its buffer again as soon as the write is done
    // A copy: the caller's buffer is used again (and a Buffer's slice would be a view).
    const data = first < last ? new Uint8Array(from.subarray(first - at, last - at)) : new Uint8Array(0);
    const edges: Piece[] = [];
    return this.#log.record(this.#name, { kind: 'write', at: first, data, edges }, async () => {
      await this.#inner.write(at, from);
      await this.#addEdges(edges, at, from.length);
    });
  }

  zero(range: Range, options?: { readonly unmap?: boolean }): Promise<void> {
    const { first, last } = wholeSectors(range.at, range.length);
    const edges: Piece[] = [];
    const length = Math.max(0, last - first);
    return this.#log.record(this.#name, { kind: 'zero', at: first, length, edges }, async () => {
      await this.#inner.zero(range, options);
      await this.#addEdges(edges, range.at, range.length);
    });
  }

  /** The sectors that a request covers in part, as they are now. */
  async #addEdges(edges: Piece[], at: number, length: number): Promise<void> {
    const end = at + length;
    const { first, last } = wholeSectors(at, length);
    const starts = new Set<number>();
    if (at < first || first >= last) starts.add(Math.floor(at / SECTOR) * SECTOR);
    if (end > last) starts.add(Math.floor((end - 1) / SECTOR) * SECTOR);
    for (const start of starts) {
      if (start >= first && start < last) continue;
      const data = new Uint8Array(Math.min(SECTOR, this.#inner.size - start));
      await this.#inner.read(start, data);
      edges.push({ at: start, data });
    }
  }

  discard(range: Range): Promise<void> {
    const { at, length } = range;
    return this.#log.record(this.#name, { kind: 'discard', at, length }, () => this.#inner.discard(range));
  }

  truncate(size: number, preallocation?: Preallocation): Promise<void> {
    return this.#log.record(this.#name, { kind: 'truncate', size }, () =>
      this.#inner.truncate(size, preallocation),
    );
  }

  flush(): Promise<void> {
    return this.#log.record(this.#name, { kind: 'flush' }, () => this.#inner.flush());
  }

  extent(range: Range): MaybePromise<DataRun> {
    return this.#inner.extent(range);
  }

  close(): Promise<void> {
    return this.#inner.close();
  }
}
