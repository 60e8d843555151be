/** Takes a Unix socket's path for this process: one daemon a path, and what a dead one left behind is cleared away. */
import {
  chmodSync,
  chownSync,
  closeSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  statSync,
  unlinkSync,
} from 'node:fs';
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

/** Whom the folder lets in, where it has to be made. */
export interface FolderAccess {
  readonly mode: number;
  readonly group: number | undefined;
}

/**
 * Holds `<path>.lock` (flock, gone with the process however it ends), so that of several daemons that start at once only one
 * looks at the socket file, and removes a socket that nobody answers on. Makes the folder, for its user (and group) alone.
 */
export async function claimSocket(path: string, access?: FolderAccess): Promise<Claim> {
  const folder = dirname(path);
  try {
    // One level: Node's recursive mkdir never returns for some paths below /proc.
    mkdirSync(folder, { mode: 0o700 });
    if (access !== undefined && (access.mode & 0o070) !== 0) {
      if (access.group !== undefined) chownSync(folder, -1, access.group);
      chmodSync(folder, 0o750);
    }
  } catch (error) {
    if (codeOf(error) !== 'EEXIST')
      throw new ClaimError(`cannot make the folder of ${path}: ${codeOf(error)}`);
  }
  checkFolder(folder);
  const lock = takeLock(path);
  try {
    await clearStale(path);
  } catch (error) {
    lock.release();
    throw error;
  }
  return lock;
}

/** Whoever can write the folder can put another socket in this one's place, and be taken for the daemon. */
function checkFolder(folder: string): void {
  const uid = process.geteuid?.();
  const found = statSync(folder, { throwIfNoEntry: false });
  if (found === undefined || uid === undefined) return;
  if (found.uid !== uid && found.uid !== 0) {
    throw new ClaimError(`the socket's folder ${folder} belongs to another user (${found.uid})`);
  }
  // With the sticky bit, as in /tmp, nobody but its owner removes a file.
  if ((found.mode & 0o002) !== 0 && (found.mode & 0o1000) === 0) {
    throw new ClaimError(`the socket's folder ${folder} can be written by others (chmod o-w)`);
  }
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
  const uid = process.geteuid?.();
  if (uid !== undefined && found.uid !== uid && found.uid !== 0) {
    throw new ClaimError(`the socket ${path} belongs to another user (${found.uid})`);
  }
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
