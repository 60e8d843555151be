/** Whole transfers on a plain descriptor: Node's callback calls, continued where they were short, repeated where interrupted. */
import {
  close,
  closeSync,
  constants,
  fdatasync,
  fstat,
  fstatSync,
  ftruncate,
  open,
  openSync,
  read,
  type Stats,
  stat,
  statSync,
  write,
} from 'node:fs';
import { codeOf } from './host/errno.js';

/** One system call moves no more than 2^31 - 4096 bytes on Linux; Node takes less than 2^31. */
const MAX_CALL = 2 ** 30;

/**
 * Fills `into` from offset `at`, with zeros past the end of the file. `alignment` is what O_DIRECT asks of offsets: a count
 * that is no multiple of it can only be at the end.
 */
export function readFully(fd: number, at: number, into: Uint8Array, alignment = 1): Promise<void> {
  return new Promise((resolve, reject) => {
    let done = 0;
    const next = (): void => {
      read(fd, into, done, Math.min(into.length - done, MAX_CALL), at + done, (error, count) => {
        if (error) {
          if (error.code !== 'EINTR') return reject(error);
        } else {
          done += count;
          if (done === into.length) return resolve();
          if (count === 0 || done % alignment !== 0) {
            into.fill(0, done);
            return resolve();
          }
        }
        next();
      });
    };
    if (into.length === 0) resolve();
    else next();
  });
}

/** Writes all of `from` at offset `at`. */
export function writeFully(fd: number, at: number, from: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    let done = 0;
    const next = (): void => {
      write(fd, from, done, Math.min(from.length - done, MAX_CALL), at + done, (error, count) => {
        if (error) {
          if (error.code !== 'EINTR') return reject(error);
        } else {
          done += count;
          if (done === from.length) return resolve();
          if (count === 0)
            return reject(Object.assign(new Error('write made no progress'), { code: 'ENOSPC' }));
        }
        next();
      });
    };
    if (from.length === 0) resolve();
    else next();
  });
}

/** A call that yields nothing, as a promise, repeated where a signal interrupted it. */
function settle(call: (done: (error: NodeJS.ErrnoException | null) => void) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const start = (): void =>
      call((error) => {
        if (!error) resolve();
        else if (codeOf(error) === 'EINTR') start();
        else reject(error);
      });
    start();
  });
}

/**
 * Opening, looking at and closing a file takes the kernel 2 us, and Node's thread pool ten times as long. A thread that nobody
 * waits for but those whose files they are makes these calls itself; a file system that hangs keeps it, and no thread of the pool.
 */
let inThread = false;

/** For the thread that calls it, from now on. */
export function waitInThread(): void {
  inThread = true;
}

/** A call made in this thread, as a promise, repeated where a signal interrupted it. */
async function now<T>(call: () => T): Promise<T> {
  for (;;) {
    try {
      return call();
    } catch (error) {
      if (codeOf(error) !== 'EINTR') throw error;
    }
  }
}

/** What has the name; undefined where that cannot be told. */
export function statPath(path: string): Promise<Stats | undefined> {
  if (inThread) return now(() => statSync(path, { throwIfNoEntry: false })).catch(() => undefined);
  return new Promise((resolve) => {
    stat(path, (error, stats) => resolve(error ? undefined : stats));
  });
}

export function openDescriptor(path: string, flags: number, mode: number): Promise<number> {
  // Otherwise it may wait for somebody else to open the other end, or for a drive.
  if (inThread && (flags & constants.O_NONBLOCK) !== 0) return now(() => openSync(path, flags, mode));
  return new Promise((resolve, reject) => {
    const start = (): void =>
      open(path, flags, mode, (error, fd) => {
        if (!error) resolve(fd);
        else if (codeOf(error) === 'EINTR') start();
        else reject(error);
      });
    start();
  });
}

export function statDescriptor(fd: number): Promise<Stats> {
  if (inThread) return now(() => fstatSync(fd));
  return new Promise((resolve, reject) =>
    fstat(fd, (error, stats) => (error ? reject(error) : resolve(stats))),
  );
}

export function setLength(fd: number, size: number): Promise<void> {
  return settle((done) => ftruncate(fd, size, done));
}

export function syncData(fd: number): Promise<void> {
  return settle((done) => fdatasync(fd, done));
}

/**
 * Never repeated: Linux has let the descriptor go even where it says EINTR.
 * @param written to close it may take as long as to write what it has.
 */
export function closeDescriptor(fd: number, written = true): Promise<void> {
  if (inThread && !written) {
    try {
      closeSync(fd);
    } catch (error) {
      if (codeOf(error) !== 'EINTR') return Promise.reject(error);
    }
    return Promise.resolve();
  }
  return new Promise((resolve, reject) =>
    close(fd, (error) => (error && codeOf(error) !== 'EINTR' ? reject(error) : resolve())),
  );
}
