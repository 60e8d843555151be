/** Checks and errors that all storages share. */
import { errnoText, hostError, ImageError } from '../error.js';
import { codeOf } from './host/errno.js';

/** Largest offset that is exact as a number: 8 PiB less one. */
export const MAX_OFFSET = Number.MAX_SAFE_INTEGER;

/**
 * Refuses what is no byte range (negative, fractional, beyond 2^53) as the host refuses it: offsets come from images, so
 * this is ordinary input and not a bug.
 */
export function checkRange(filename: string, operation: string, at: number, length: number): void {
  if (Number.isSafeInteger(at) && at >= 0 && Number.isSafeInteger(length) && length >= 0) {
    if (Number.isSafeInteger(at + length)) return;
  }
  throw new ImageError('io', errnoText('EIO'), { path: filename, operation, errno: 'EIO' });
}

/** Refuses a change of a storage that was opened for reading. */
export function checkWritable(filename: string, operation: string, writable: boolean): void {
  if (writable) return;
  throw new ImageError('read-only', errnoText('EBADF'), { path: filename, operation, errno: 'EBADF' });
}

/**
 * The error of a failed request: its text is the C library's alone (`No space left on device`), because whoever made the
 * request puts before it what was being done and where.
 */
export function requestError(cause: unknown, filename: string, operation: string, at?: number): ImageError {
  if (cause instanceof ImageError) return cause;
  const code = codeOf(cause);
  const { kind } = hostError('', { code });
  const context = { path: filename, operation, errno: code, ...(at === undefined ? {} : { offset: at }) };
  return new ImageError(kind, errnoText(code), context, cause);
}
