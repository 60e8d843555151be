/**
 * What the next daemon must know if this one is killed: which jobs were under way, and how far conversions had come. Jobs
 * that only look at a few blocks (image-info) leave no trace in images, and none here.
 */
import { stat } from 'node:fs/promises';
import type { OperationName } from '../../protocol/commands/index.js';
import type { Log } from '../log.js';
import { JournalError, JournalFile, MAX_BYTES } from './journal-file.js';

const VERSION = 1;
/** What all entries together may come to; the file, written anew when it is four times that, stays below its own limit. */
const MAX_CONTENT = MAX_BYTES / 4 - 1024 * 1024;
/** Beyond this, parameters are left out: they are for people to read. */
const FULL_CONTENT = MAX_CONTENT / 2;
/** What one mark may come to: sources of more files than that are converted again. */
const MAX_MARK = 16 * 1024;
/** The file is written anew when it is this long, and much longer than what it has to say. */
const COMPACT_BYTES = 256 * 1024;
/** Members of an entry that are of no great length, with the names of all. */
const ENTRY_BYTES = 512;
/** Jobs that were cut off are remembered so long, and so many of them. */
const REMEMBER_MS = 30 * 24 * 3600_000;
const REMEMBER_JOBS = 256;

/** What is kept of a job that has not concluded, or was cut off. */
export interface JournalEntry {
  readonly id: string;
  readonly operation: OperationName;
  /** As the client gave them, without what may be secret. */
  readonly params: unknown;
  /** Hash of the parameters: tells a retry, and a resumption, from another job. */
  readonly digest: string;
  /** Who asked: `uid 1000, pid 77`, or the kind of the connection. */
  readonly owner: string;
  readonly autoDismiss: boolean;
  readonly created: number;
  readonly started?: number;
  /** When a later daemon found that it had been cut off. */
  readonly interrupted?: number;
  /** How far it had come: what the operation last asked to be kept. */
  readonly mark?: unknown;
}

type JournalRecord =
  | { readonly is: 'journal'; readonly version: number }
  | { readonly is: 'job'; readonly job: JournalEntry }
  | { readonly is: 'run'; readonly id: string; readonly at: number }
  | { readonly is: 'mark'; readonly id: string; readonly mark: unknown }
  /** Concluded, with `error` (a kind) or well; or, where it had been cut off, forgotten. */
  | { readonly is: 'end'; readonly id: string; readonly at: number; readonly error?: string };

/** Entries that are left of the records; those that are of no known kind are passed over. */
export function entriesOf(records: readonly unknown[]): Map<string, JournalEntry> {
  const entries = new Map<string, JournalEntry>();
  for (const each of records as readonly JournalRecord[]) {
    if (each.is === 'journal') {
      if (each.version !== VERSION) throw new JournalError(`it is of version ${String(each.version)}`, true);
    } else if (each.is === 'job') {
      // Last in order of arrival, as in the daemon.
      entries.delete(each.job.id);
      entries.set(each.job.id, each.job);
    } else if (each.is === 'end') entries.delete(each.id);
    else {
      const entry = entries.get(each.id);
      if (entry === undefined) continue;
      if (each.is === 'run') entries.set(each.id, { ...entry, started: each.at });
      else if (each.is === 'mark') entries.set(each.id, { ...entry, mark: each.mark });
    }
  }
  return entries;
}

export class Journal {
  readonly #file: JournalFile;
  readonly #log: Log;
  readonly #entries: Map<string, JournalEntry>;
  /** Bytes after the last compaction. */
  #base = 0;
  /** Bytes of each entry, and of all. */
  readonly #sizes = new Map<string, number>();
  #size = 0;
  /** What could not be written is made up for by writing all anew. */
  #behind = false;
  #closed = false;

  private constructor(file: JournalFile, log: Log, entries: Map<string, JournalEntry>) {
    this.#file = file;
    this.#log = log;
    this.#entries = entries;
    for (const entry of entries.values()) this.#measure(entry);
    file.onLost = (error) => {
      this.#failed(error);
      if (!this.#closed) this.#compact();
    };
  }

  /**
   * Never throws: where the file does not serve the daemon goes without, and says so.
   * @returns `cutOff` in order of arrival: jobs that had not concluded when the last daemon ended, and earlier ones that
   *   nobody has dismissed yet.
   */
  static open(path: string, log: Log): { journal: Journal | undefined; cutOff: JournalEntry[] } {
    let file: JournalFile;
    let entries: Map<string, JournalEntry>;
    try {
      const opened = JournalFile.open(path, entriesOf);
      file = opened.file;
      if (opened.damage !== undefined) {
        log.warn({ journal: path, reason: opened.damage }, 'journal damaged: a new one is begun');
      }
      entries = opened.content;
    } catch (error) {
      if (!(error instanceof JournalError)) throw error;
      log.warn({ journal: path, reason: error.message }, 'no journal is kept');
      return { journal: undefined, cutOff: [] };
    }
    const now = Date.now();
    const old = [...entries.values()].reverse().filter((entry, at) => {
      return at >= REMEMBER_JOBS || (entry.interrupted ?? now) < now - REMEMBER_MS;
    });
    for (const { id } of old) entries.delete(id);
    const found: JournalEntry[] = [];
    for (const entry of entries.values()) {
      if (entry.interrupted !== undefined) continue;
      entries.set(entry.id, { ...entry, interrupted: now });
      found.push(entry);
      const { id: job, operation, owner } = entry;
      log.warn({ job, operation, owner, began: entry.started !== undefined }, 'job was cut off');
    }
    const journal = new Journal(file, log, entries);
    journal.#compact();
    for (const entry of found) void journal.#look(entry);
    return { journal, cutOff: [...entries.values()] };
  }

  /** Whether another job can be kept: what is not in the journal does not run. */
  get full(): boolean {
    return this.#size > MAX_CONTENT - ENTRY_BYTES;
  }

  created(entry: JournalEntry): void {
    const job = this.#size > FULL_CONTENT ? { ...entry, params: {} } : entry;
    this.#entries.delete(job.id);
    this.#entries.set(job.id, job);
    this.#measure(job);
    this.#append({ is: 'job', job });
  }

  started(id: string, at: number): void {
    this.#change(id, { started: at }, { is: 'run', id, at });
  }

  mark(id: string, wanted: unknown): void {
    const bytes = wanted === undefined ? 0 : Buffer.byteLength(JSON.stringify(wanted));
    const mark = bytes > MAX_MARK || this.#size + bytes > MAX_CONTENT ? undefined : wanted;
    this.#change(id, { mark }, { is: 'mark', id, mark });
  }

  /**
   * A job that was to go on from a mark has failed, and has left what the mark is about as it was: it can still be gone on
   * with, as if there had been no attempt.
   */
  untouched(id: string, error: string): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    if (entry.mark === undefined || this.markOf(entry.digest) !== undefined) {
      // Another entry still has the mark.
      this.#remove(id);
      this.#append({ is: 'end', id, at: Date.now(), error });
      return;
    }
    const job = { ...entry, interrupted: Date.now() };
    this.#entries.set(id, job);
    this.#append({ is: 'job', job });
  }

  /** Concluded, or forgotten where it had been cut off. */
  ended(id: string, error?: string): void {
    const ended = this.#entries.get(id);
    if (ended === undefined) return;
    this.#remove(id);
    // It is done, or has failed and cleaned up: nobody goes on from where an earlier attempt was cut off.
    if (ended.interrupted === undefined) {
      for (const { id, digest, mark } of [...this.#entries.values()]) {
        if (digest === ended.digest && mark !== undefined) this.mark(id, undefined);
      }
    }
    this.#append({ is: 'end', id, at: Date.now(), ...(error === undefined ? {} : { error }) });
  }

  /** How far a job with these parameters had come when it was cut off, the last one if there are several. */
  markOf(digest: string): unknown {
    return [...this.#entries.values()].findLast(
      (entry) => entry.interrupted !== undefined && entry.digest === digest && entry.mark !== undefined,
    )?.mark;
  }

  /** Notes how an unfinished target was found: who changes it from here on is not the job that was cut off. */
  async #look({ id, mark }: JournalEntry): Promise<void> {
    const path = (mark as { readonly path?: unknown } | null | undefined)?.path;
    if (typeof path !== 'string') return;
    const seen = await stat(path, { bigint: true }).catch(() => undefined);
    const { interrupted, mark: still } = this.#entries.get(id) ?? {};
    if (seen === undefined || interrupted === undefined || still !== mark) return;
    this.mark(id, { ...(mark as object), seen: `${seen.size}:${seen.mtimeNs}` });
  }

  /** A journal that has nothing to say goes. */
  close(): Promise<void> {
    this.#closed = true;
    if (this.#entries.size === 0) this.#file.remove();
    return this.#file.close();
  }

  #change(id: string, change: Partial<JournalEntry>, record: JournalRecord): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    const changed = { ...entry, ...change };
    this.#entries.set(id, changed);
    this.#measure(changed);
    this.#append(record);
  }

  #remove(id: string): void {
    this.#entries.delete(id);
    this.#size -= this.#sizes.get(id) ?? 0;
    this.#sizes.delete(id);
  }

  #measure(entry: JournalEntry): void {
    const { id, params, mark, owner } = entry;
    const bytes = ENTRY_BYTES + Buffer.byteLength(JSON.stringify([id, params, mark, owner]));
    this.#size += bytes - (this.#sizes.get(id) ?? 0);
    this.#sizes.set(id, bytes);
  }

  #append(record: JournalRecord): void {
    const { bytes } = this.#file;
    if (this.#behind || (bytes > COMPACT_BYTES && bytes > 4 * this.#base)) {
      this.#compact();
      return;
    }
    this.#write(() => this.#file.append(record));
  }

  /** Says the same in a new file: what the entries are now, this very change with them. */
  #compact(): void {
    this.#write(() => {
      const jobs = [...this.#entries.values()].map((job): JournalRecord => ({ is: 'job', job }));
      this.#file.replace([{ is: 'journal', version: VERSION } satisfies JournalRecord, ...jobs]);
      this.#base = this.#file.bytes;
    });
  }

  #write(write: () => void): void {
    try {
      write();
      if (this.#behind) this.#log.info('the journal is written again');
      this.#behind = false;
    } catch (error) {
      this.#failed(error);
    }
  }

  #failed(error: unknown): void {
    const { code, message } = error as NodeJS.ErrnoException;
    if (!this.#behind) this.#log.error({ code, reason: message }, 'the journal cannot be written');
    this.#behind = true;
  }
}
