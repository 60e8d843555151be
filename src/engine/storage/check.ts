/** Checks and errors that all storages share. */
import { errnoText, hostError, ImageError } from '../error.js';
import { codeOf } from './host/errno.js';
import type { Preallocation } from './storage.js';

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

/** Refuses a length that a file, or a device, of the present size cannot be given. */
export function checkTruncate(
  file: { readonly filename: string; readonly driver: string; readonly size: number },
  size: number,
  preallocation: Preallocation,
): void {
  const { filename } = file;
  if (size > MAX_OFFSET) {
    throw new ImageError('no-space', errnoText('EFBIG'), { path: filename, errno: 'EFBIG' });
  }
  const refuse = (kind: 'unsupported' | 'invalid', text: string): never => {
    throw new ImageError(kind, text, { path: filename });
  };
  if (file.driver === 'host_device') {
    if (preallocation !== 'off') {
      refuse('unsupported', `Preallocation mode '${preallocation}' unsupported for this non-regular file`);
    }
    if (size > file.size) refuse('invalid', 'Cannot grow device files');
    return;
  }
  if (preallocation === 'metadata') refuse('unsupported', 'Unsupported preallocation mode: metadata');
  if (preallocation !== 'off' && size < file.size) {
    refuse('unsupported', 'Cannot use preallocation for shrinking files');
  }
}
