/** Where a file has data, giving it space and taking space away, and copying inside the host: lseek(2), fallocate(2), copy_file_range(2). */
import type { Range } from '../storage.js';
import { codeOf, errnoName, meansUnavailable, systemError } from './errno.js';
import { callAsync, libc } from './libc.js';

const SEEK_DATA = 3;
const SEEK_HOLE = 4;

const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 16;

/** `reserve` allocates without growing the file, `allocate` grows it. */
const MODE = { allocate: 0, reserve: KEEP_SIZE, punch: PUNCH_HOLE | KEEP_SIZE, zero: ZERO_RANGE } as const;
export type SpaceOperation = keyof typeof MODE;

/** Why an offset cannot be told: no data from there to the end of the file, or a host that cannot say. */
export type NoOffset = 'end' | 'unknown';

function seek(fd: number, at: number, whence: number): number | NoOffset {
  const c = libc();
  if (c === undefined) return 'unknown';
  const found = c.lseek(fd, at, whence);
  if (found >= 0) return found;
  return errnoName(c.errno()) === 'ENXIO' ? 'end' : 'unknown';
}

/** The first offset at or after `at` that has data. */
export function seekData(fd: number, at: number): number | NoOffset {
  return seek(fd, at, SEEK_DATA);
}

/** The first offset at or after `at` that is in a hole; the end of the file is one. */
export function seekHole(fd: number, at: number): number | NoOffset {
  return seek(fd, at, SEEK_HOLE);
}

/** Where the host has no such call, or not on this filesystem or descriptor: false. Rejects as Node does where it failed. */
export async function changeSpace(
  fd: number,
  operation: SpaceOperation,
  { at, length }: Range,
): Promise<boolean> {
  const c = libc();
  if (c === undefined) return false;
  try {
    await callAsync('fallocate', c, c.fallocate, fd, MODE[operation], at, length);
    return true;
  } catch (error) {
    if (meansUnavailable(codeOf(error))) return false;
    throw error;
  }
}

/**
 * Allocates without growing the file, in this thread: some 30 us, where a call on the thread pool costs twice that and two
 * turns of the event loop. False where the host does not do it now.
 */
export function reserveNow(fd: number, { at, length }: Range): boolean {
  const c = libc();
  return c !== undefined && c.fallocate(fd, MODE.reserve, at, length) === 0;
}

/** Allocates and grows, on every filesystem: the C library writes a byte a block where fallocate is missing. False without it. */
export async function posixFallocate(fd: number, { at, length }: Range): Promise<boolean> {
  const c = libc();
  if (c === undefined) return false;
  const number = await callAsync('posix_fallocate', c, c.posixFallocate, fd, at, length);
  if (number === 0) return true;
  if (errnoName(number) === 'EINTR') return posixFallocate(fd, { at, length });
  throw systemError('posix_fallocate', number);
}

/**
 * Copies inside the host, sharing blocks where the filesystem can. Resolves to how many bytes were copied (0 at the end of
 * the source), or undefined where these two files cannot be copied so.
 */
export async function copyFileRange(
  from: { readonly fd: number; readonly at: number },
  to: { readonly fd: number; readonly at: number },
  length: number,
): Promise<number | undefined> {
  const c = libc();
  if (c === undefined) return undefined;
  const offsets = new BigInt64Array([BigInt(from.at), BigInt(to.at)]);
  const offsetIn = new Uint8Array(offsets.buffer, 0, 8);
  const offsetOut = new Uint8Array(offsets.buffer, 8, 8);
  try {
    return await callAsync(
      'copy_file_range',
      c,
      c.copyFileRange,
      from.fd,
      offsetIn,
      to.fd,
      offsetOut,
      length,
      0,
    );
  } catch (error) {
    const code = codeOf(error);
    if (meansUnavailable(code) || code === 'EXDEV' || code === 'ETXTBSY' || code === 'EBADF')
      return undefined;
    throw error;
  }
}
