/** Takes a Unix socket's path for this process: one daemon a path, and what a dead one left behind is cleared away. */
import { closeSync, fstatSync, lstatSync, mkdirSync, openSync, statSync, unlinkSync } from 'node:fs';
import { connect } from 'node:net';
import { dirname } from 'node:path';
import { libcFunction } from '../libc.js';

/** The path cannot be had; one line for the user. */
export class ClaimError extends Error {}

export interface Claim {
  /** Gives the path up. The socket file itself goes when the server closes. */
  release(): void;
}

const LOCK_EX = 2;
const LOCK_NB = 4;

/**
 * Holds `<path>.lock` (flock, gone with the process however it ends), so that of several daemons that start at once only one
 * looks at the socket file, and removes a socket that nobody answers on. Makes the folder, for its user alone.
 */
export async function claimSocket(path: string): Promise<Claim> {
  try {
    // One level: Node's recursive mkdir never returns for some paths below /proc.
    mkdirSync(dirname(path), { mode: 0o700 });
  } catch (error) {
    if (codeOf(error) !== 'EEXIST')
      throw new ClaimError(`cannot make the folder of ${path}: ${codeOf(error)}`);
  }
  const lock = takeLock(path);
  try {
    await clearStale(path);
  } catch (error) {
    lock.release();
    throw error;
  }
  return lock;
}

function takeLock(path: string): Claim {
  const lockPath = `${path}.lock`;
  const flock = libcFunction<(fd: number, operation: number) => number>('int flock(int fd, int operation)');
  for (;;) {
    let fd: number;
    try {
      fd = openSync(lockPath, 'a', 0o600);
    } catch (error) {
      throw new ClaimError(`cannot open ${lockPath}: ${codeOf(error)}`);
    }
    // Where the C library cannot be called the test for a listener alone has to do.
    if (flock !== undefined && flock(fd, LOCK_EX | LOCK_NB) !== 0) {
      closeSync(fd);
      throw new ClaimError(`another imgd serves ${path}`);
    }
    // The holder before may have removed the file between our open and our lock: then the lock is on a file without a name.
    const named = statSync(lockPath, { throwIfNoEntry: false });
    const held = fstatSync(fd);
    if (named?.ino === held.ino && named.dev === held.dev) {
      return {
        release() {
          try {
            unlinkSync(lockPath);
          } catch {
            // gone already
          }
          closeSync(fd);
        },
      };
    }
    closeSync(fd);
  }
}

async function clearStale(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) throw new ClaimError(`${path} exists and is not a socket`);
  if (await answers(path)) throw new ClaimError(`another program serves ${path}`);
  try {
    unlinkSync(path);
  } catch (error) {
    throw new ClaimError(`cannot remove the stale socket ${path}: ${codeOf(error)}`);
  }
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ECONNREFUSED' || error.code === 'ENOENT') resolve(false);
      else reject(new ClaimError(`cannot tell who serves ${path}: ${codeOf(error)}`));
    });
  });
}

function codeOf(error: unknown): string {
  return (error as NodeJS.ErrnoException).code ?? String(error);
}
