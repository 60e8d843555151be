/**
 * An append-only file of records, one a line: eight hex digits of CRC-32, a space, JSON. What a crash tears is its tail;
 * a bad line with good ones after it is damage.
 */
import {
  closeSync,
  constants,
  fdatasync,
  fdatasyncSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { crc32 } from 'node:zlib';
import { libcFunction } from '../libc.js';

const LOCK_EX_NB = 2 | 4;
/** No journal grows as large (see MAX_CONTENT in journal.ts): something else has the name. */
export const MAX_BYTES = 64 * 1024 * 1024;

/** The file cannot serve: one sentence for the log. */
export class JournalError extends Error {
  /** It has been read, and is no journal. */
  readonly damaged: boolean;

  constructor(message: string, damaged = false) {
    super(message);
    this.damaged = damaged;
  }
}

export function encodeRecord(record: object): string {
  const json = JSON.stringify(record);
  return `${crc32(json).toString(16).padStart(8, '0')} ${json}\n`;
}

function decodeLine(line: Buffer): unknown {
  if (line.length < 10 || line[8] !== 0x20) return undefined;
  const json = line.subarray(9);
  if (Number.parseInt(line.toString('latin1', 0, 8), 16) !== crc32(json)) return undefined;
  try {
    return JSON.parse(json.toString());
  } catch {
    return undefined;
  }
}

/** The records of a journal, without a torn tail. Throws `JournalError` where something in the middle is bad. */
export function decodeRecords(bytes: Buffer): unknown[] {
  const records: unknown[] = [];
  let bad: number | undefined;
  for (let at = 0; at < bytes.length; ) {
    const end = bytes.indexOf(0x0a, at);
    // Without its line end the last record is torn, whatever it holds.
    const record = end < 0 ? undefined : decodeLine(bytes.subarray(at, end));
    if (record === undefined) bad ??= at;
    else if (bad !== undefined) throw new JournalError(`a record at byte ${bad} is damaged`, true);
    else records.push(record);
    at = end < 0 ? bytes.length : end + 1;
  }
  if (records.length === 0 && bytes.length > 0) throw new JournalError('it holds no record', true);
  return records;
}

function codeOf(error: unknown): string {
  return (error as NodeJS.ErrnoException).code ?? String(error);
}

/** Makes the folder and those above it that are missing, each for its user alone. */
function makeFolder(folder: string, depth = 0): void {
  try {
    mkdirSync(folder, { mode: 0o700 });
  } catch (error) {
    if (codeOf(error) === 'EEXIST') return;
    if (codeOf(error) !== 'ENOENT' || depth > 8 || dirname(folder) === folder) throw error;
    makeFolder(dirname(folder), depth + 1);
    mkdirSync(folder, { mode: 0o700 });
  }
}

/** One process a journal: the lock goes with the process, however it ends. */
function openLocked(path: string, flags: number): number {
  const flock = libcFunction<(fd: number, operation: number) => number>('int flock(int fd, int operation)');
  for (;;) {
    const fd = openSync(path, flags | constants.O_CREAT | constants.O_RDWR | constants.O_NONBLOCK, 0o600);
    const held = fstatSync(fd);
    if (!held.isFile()) {
      closeSync(fd);
      throw new JournalError(`${path} is not a file`);
    }
    if (flock !== undefined && flock(fd, LOCK_EX_NB) !== 0) {
      closeSync(fd);
      throw new JournalError(`${path} is in use by another imgd`);
    }
    // The holder before may have put a new file in its place between our open and our lock.
    const named = statSync(path, { throwIfNoEntry: false });
    if (named?.ino === held.ino && named.dev === held.dev) return fd;
    closeSync(fd);
  }
}

export class JournalFile {
  readonly #path: string;
  #fd: number;
  #bytes = 0;
  #syncing = false;
  #syncAgain = false;
  #onIdle: (() => void)[] = [];
  #closed = false;
  /** Told when what was appended has not come to the disk: the kernel says so once, and takes it for written then. */
  onLost: ((error: unknown) => void) | undefined;

  private constructor(path: string, fd: number) {
    this.#path = path;
    this.#fd = fd;
  }

  /**
   * Opens or makes the file and reads it; one that is damaged is moved aside, and `damage` says where to.
   * @param read what the records say; may throw a `JournalError` too.
   */
  static open<T>(
    path: string,
    read: (records: readonly unknown[]) => T,
  ): { file: JournalFile; content: T; damage: string | undefined } {
    try {
      makeFolder(dirname(path));
      let fd = openLocked(path, 0);
      let content: T;
      let damage: string | undefined;
      try {
        if (fstatSync(fd).size > MAX_BYTES) throw new JournalError('it is too long for a journal', true);
        content = read(decodeRecords(readFileSync(fd)));
      } catch (error) {
        const aside = `${path}.damaged-${Date.now()}`;
        try {
          if (!(error instanceof JournalError)) throw error;
          renameSync(path, aside);
        } finally {
          closeSync(fd);
        }
        damage = `${error.message}; moved to ${aside}`;
        fd = openLocked(path, 0);
        content = read([]);
      }
      return { file: new JournalFile(path, fd), content, damage };
    } catch (error) {
      if (error instanceof JournalError) throw error;
      throw new JournalError(`cannot open ${path}: ${codeOf(error)}`);
    }
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Written at once, so that it survives the process; on its way to the disk, so that it survives the machine. Throws. */
  append(record: object): void {
    this.#checkOpen();
    const text = Buffer.from(encodeRecord(record));
    try {
      for (let at = 0; at < text.length; ) {
        at += writeSync(this.#fd, text, at, text.length - at, this.#bytes + at);
      }
    } catch (error) {
      // Half a record would be damage once another follows.
      ftruncateSync(this.#fd, this.#bytes);
      throw error;
    }
    this.#bytes += text.length;
    this.#sync();
  }

  /** Puts a new file with these records in the place of this one, which stays where that fails. Throws. */
  replace(records: readonly object[]): void {
    this.#checkOpen();
    const temporary = `${this.#path}.new`;
    try {
      unlinkSync(temporary);
    } catch {
      // none left behind
    }
    const fd = openLocked(temporary, constants.O_EXCL);
    const text = Buffer.from(records.map(encodeRecord).join(''));
    try {
      for (let at = 0; at < text.length; ) at += writeSync(fd, text, at, text.length - at, at);
      fsyncSync(fd);
      renameSync(temporary, this.#path);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    const old = this.#fd;
    this.#fd = fd;
    this.#bytes = text.length;
    // A sync that is under way ends first: its descriptor must not become another file's.
    if (this.#syncing) this.#onIdle.push(() => closeSync(old));
    else closeSync(old);
    const folder = openSync(dirname(this.#path), 'r');
    try {
      fsyncSync(folder);
    } finally {
      closeSync(folder);
    }
  }

  /** It is closed next. */
  remove(): void {
    try {
      unlinkSync(this.#path);
    } catch {
      // Somebody else has removed it, or it stays, empty.
    }
  }

  /** Resolves when all is on the disk. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#syncing) await new Promise<void>((resolve) => this.#onIdle.push(resolve));
    try {
      fdatasyncSync(this.#fd);
    } catch (error) {
      this.onLost?.(error);
    }
    closeSync(this.#fd);
  }

  /** The number of its descriptor may be another file's by now. */
  #checkOpen(): void {
    if (this.#closed) throw new JournalError('it is closed');
  }

  /** One at a time; what is appended meanwhile is in the next. */
  #sync(): void {
    if (this.#syncing) {
      this.#syncAgain = true;
      return;
    }
    this.#syncing = true;
    const fd = this.#fd;
    fdatasync(fd, (error) => {
      this.#syncing = false;
      // A file that was replaced meanwhile no longer matters.
      if (error !== null && fd === this.#fd) this.onLost?.(error);
      for (const callback of this.#onIdle.splice(0)) callback();
      if (!this.#syncAgain || this.#closed) return;
      this.#syncAgain = false;
      this.#sync();
    });
  }
}
