/**
 * Who holds a lock. The kernel does not say it of open-file-description locks (their process id is -1 in /proc/locks), but
 * lists with each descriptor of each process, in /proc/<pid>/fdinfo/<fd>, the locks that were taken through it.
 */
import { fstatSync, readdirSync, readFileSync, type Stats, statSync } from 'node:fs';

export interface LockHolder {
  readonly pid: number;
  /** The program's name alone: its arguments may hold what is not for everyone. */
  readonly command: string;
  /** Of this very process: through which descriptor. */
  readonly descriptor?: number;
}

/** The search is a courtesy in an error path; it ends after this long. */
const TIME_LIMIT_MS = 250;

/** `lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:1234 101 101`: device, inode, first and last byte (or EOF). */
const LOCK_LINE =
  /^lock:\t\d+: (?:OFDLCK|POSIX)\s+\w+\s+\w+\s+-?\d+ [0-9a-f]+:[0-9a-f]+:(\d+) (\d+) (\d+|EOF)$/gm;

function list(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

function text(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}

/** Whether the descriptor's locks cover the byte of that file. */
function covers(fdinfo: string, inode: string, at: number): boolean {
  for (const [, ino, first, last] of fdinfo.matchAll(LOCK_LINE)) {
    if (ino === inode && Number(first) <= at && (last === 'EOF' || at <= Number(last))) return true;
  }
  return false;
}

/** Inode numbers repeat from one filesystem to the next, and the device of a `lock:` line is not always that of stat. */
function isSameFile(path: string, file: Stats): boolean {
  try {
    const found = statSync(path, { throwIfNoEntry: false });
    return found?.ino === file.ino && found.dev === file.dev;
  } catch {
    return false;
  }
}

/** The process that holds a lock on the byte, through another open file than `fd`; undefined where it is not to be learnt. */
export function findLockHolder(fd: number, at: number): LockHolder | undefined {
  let file: Stats;
  try {
    file = fstatSync(fd);
  } catch {
    return undefined;
  }
  const deadline = Date.now() + TIME_LIMIT_MS;
  // This process first: what it has open itself it can always tell.
  // Then those that were started last: whoever is in the way is seldom as old as the machine.
  const others = list('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .reverse();
  for (const pid of [String(process.pid), ...others]) {
    const own = Number(pid) === process.pid;
    for (const number of list(`/proc/${pid}/fdinfo`)) {
      if (Date.now() > deadline) return undefined;
      if (own && Number(number) === fd) continue;
      // A look at the file is one call, reading its locks is four, and few descriptors are of this file.
      if (!isSameFile(`/proc/${pid}/fd/${number}`, file)) continue;
      if (!covers(text(`/proc/${pid}/fdinfo/${number}`), String(file.ino), at)) continue;
      const command = text(`/proc/${pid}/comm`).trim();
      return { pid: Number(pid), command, ...(own ? { descriptor: Number(number) } : {}) };
    }
  }
  return undefined;
}
