/**
 * What the engine throws. `kind` is for programs and never changes its meaning; `message` is for people and holds
 * the whole text that qemu-img prints after its `qemu-img: ` prefix, one line.
 */
export type ErrorKind =
  | 'not-found' // a file that does not exist
  | 'exists' // a file that must not exist
  | 'access' // the host refused (EACCES, EPERM, EROFS)
  | 'no-space' // ENOSPC, EDQUOT, EFBIG
  | 'io' // any other failure of the host while moving bytes
  | 'locked' // another process, or another user in this one, holds a conflicting permission
  | 'denied' // the open gate refused a name
  | 'invalid' // a parameter or option that makes no sense
  | 'unsupported' // valid, but not available for this format or image
  | 'corrupt' // the image contradicts its format's specification
  | 'limit' // a size or count beyond what is accepted
  | 'read-only' // a write to something opened for reading
  | 'cancelled' // the job was cancelled
  | 'internal'; // a bug

export interface ErrorContext {
  readonly path?: string;
  /** Byte offset in `path` that the error is about. */
  readonly offset?: number;
  readonly operation?: string;
  /** Symbolic host error, as in errno.h: `ENOSPC`. */
  readonly errno?: string;
  /** Which check of the open gate refused, or which lock was not to be had. */
  readonly check?: string;
  /** Further lines for people that qemu-img prints after the error (hints). */
  readonly hint?: string;
  /** Who holds the lock that was not to be had, where that could be learnt. */
  readonly holder?: {
    readonly pid: number;
    readonly command: string;
    /** Of this very process: the descriptor that the lock was taken through. */
    readonly descriptor?: number;
    /** Of this very process: the held node or the job that it is. */
    readonly node?: string;
    readonly job?: string;
  };
}

export class ImageError extends Error {
  readonly kind: ErrorKind;
  readonly context: ErrorContext;

  constructor(kind: ErrorKind, message: string, context: ErrorContext = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'ImageError';
    this.kind = kind;
    this.context = context;
  }

  /** The same error with `prefix` put before its text, as each layer that knows more adds what it knows. */
  prefixed(prefix: string, context: ErrorContext = {}): ImageError {
    return new ImageError(this.kind, `${prefix}${this.message}`, { ...this.context, ...context }, this);
  }
}

const KIND_OF_ERRNO: Readonly<Record<string, ErrorKind>> = {
  ENOENT: 'not-found',
  ENOTDIR: 'not-found',
  EEXIST: 'exists',
  EACCES: 'access',
  EPERM: 'access',
  EROFS: 'access',
  ENOSPC: 'no-space',
  EDQUOT: 'no-space',
  EFBIG: 'no-space',
  EINVAL: 'invalid',
  ENOTSUP: 'unsupported',
  EOPNOTSUPP: 'unsupported',
};

/** strerror(3) in the C locale for the codes that image work meets; the code itself for others. */
const TEXT_OF_ERRNO: Readonly<Record<string, string>> = {
  EPERM: 'Operation not permitted',
  ENOENT: 'No such file or directory',
  EINTR: 'Interrupted system call',
  EIO: 'Input/output error',
  ENXIO: 'No such device or address',
  E2BIG: 'Argument list too long',
  EBADF: 'Bad file descriptor',
  EAGAIN: 'Resource temporarily unavailable',
  ENOMEM: 'Cannot allocate memory',
  EACCES: 'Permission denied',
  EBUSY: 'Device or resource busy',
  EEXIST: 'File exists',
  ENODEV: 'No such device',
  ENOTDIR: 'Not a directory',
  EISDIR: 'Is a directory',
  EINVAL: 'Invalid argument',
  ENFILE: 'Too many open files in system',
  EMFILE: 'Too many open files',
  ETXTBSY: 'Text file busy',
  EFBIG: 'File too large',
  ENOSPC: 'No space left on device',
  ESPIPE: 'Illegal seek',
  EROFS: 'Read-only file system',
  ERANGE: 'Numerical result out of range',
  ENAMETOOLONG: 'File name too long',
  ENOSYS: 'Function not implemented',
  ELOOP: 'Too many levels of symbolic links',
  EOVERFLOW: 'Value too large for defined data type',
  ENOTSUP: 'Operation not supported',
  EOPNOTSUPP: 'Operation not supported',
  EDQUOT: 'Disk quota exceeded',
  ECANCELED: 'Operation canceled',
  ESTALE: 'Stale file handle',
  ETIMEDOUT: 'Connection timed out',
  ECONNREFUSED: 'Connection refused',
};

/** The C library's words for a symbolic errno. */
export function errnoText(code: string): string {
  return TEXT_OF_ERRNO[code] ?? code;
}

/** An ImageError for a failed host call; `prefix` is what was being done (`Could not open 'x'`), without a colon. */
export function hostError(prefix: string, cause: unknown, context: ErrorContext = {}): ImageError {
  if (cause instanceof ImageError) return cause.prefixed(`${prefix}: `, context);
  const code = (cause as NodeJS.ErrnoException | undefined)?.code;
  if (code === undefined) return toImageError(cause).prefixed(`${prefix}: `, context);
  return new ImageError(
    KIND_OF_ERRNO[code] ?? 'io',
    `${prefix}: ${errnoText(code)}`,
    { errno: code, ...context },
    cause,
  );
}

/** What a user is told of anything thrown: ImageErrors as they are, all else as a bug. */
export function toImageError(thrown: unknown): ImageError {
  if (thrown instanceof ImageError) return thrown;
  const text = thrown instanceof Error ? thrown.message : String(thrown);
  return new ImageError('internal', `internal error: ${text}`, {}, thrown);
}
