/** Open-file-description locks, fcntl(2): they belong to the open file, not the process, and stock QEMU takes them. */
import { errnoName, systemError } from './errno.js';
import { libc } from './libc.js';

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const TYPE = { read: 0, write: 1, none: 2 } as const;

/** Calls are made one after another and keep nothing: one struct serves all of them. */
const bytes = new Uint8Array(32);
const view = new DataView(bytes.buffer);

/** struct flock on 64-bit Linux: l_type i16 at 0, l_whence i16 at 2, l_start i64 at 8, l_len i64 at 16, l_pid i32 at 24. */
function flock(type: number, at: number, length: number): Uint8Array {
  bytes.fill(0);
  view.setInt16(0, type, true);
  view.setUint32(8, at, true);
  view.setUint32(16, length, true);
  return bytes;
}

/** Whether locks can be had on this file at all: asks for one, takes none. */
export function locksAvailable(fd: number): boolean {
  const c = libc();
  return c !== undefined && c.fcntl(fd, F_OFD_GETLK, flock(TYPE.write, 0, 0)) === 0;
}

/**
 * Takes, changes or drops the lock on one byte, never waiting. False where another open file is in the way; throws as Node
 * does where the host refuses for another reason.
 */
export function setByteLock(fd: number, at: number, type: keyof typeof TYPE): boolean {
  const c = libc();
  if (c === undefined) return true;
  if (c.fcntl(fd, F_OFD_SETLK, flock(TYPE[type], at, 1)) === 0) return true;
  const number = c.errno();
  const code = errnoName(number);
  if (code === 'EAGAIN' || code === 'EACCES') return false;
  throw systemError('fcntl', number);
}

/** Whether another open file holds any lock on the byte. */
export function byteLockedElsewhere(fd: number, at: number): boolean {
  const c = libc();
  if (c === undefined) return false;
  if (c.fcntl(fd, F_OFD_GETLK, flock(TYPE.write, at, 1)) !== 0) throw systemError('fcntl', c.errno());
  return view.getInt16(0, true) !== TYPE.none;
}
