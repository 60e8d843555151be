/**
 * The C library's functions that Node lacks, through koffi: the one place that loads it, and not before something
 * needs it. Linux on 64-bit machines, whose structs and constants the callers spell out; elsewhere, or where koffi has no
 * binary, there are none, and callers take their next best way.
 */
import { createRequire } from 'node:module';
import { errnoName, systemError } from './errno.js';

type Pointer = Uint8Array | null;

/** A C function that returns -1 and sets errno (or what its comment says). */
export interface CFunction<A extends readonly unknown[]> {
  (...args: A): number;
  async(...args: [...A, (error: unknown, result: number) => void]): void;
}

export interface Libc {
  errno(): number;
  /** The address of a buffer's first byte. */
  address(buffer: Uint8Array): bigint;
  readonly fcntl: CFunction<[fd: number, command: number, argument: Uint8Array]>;
  readonly ioctl: CFunction<[fd: number, request: number, argument: Uint8Array]>;
  readonly lseek: CFunction<[fd: number, offset: number, whence: number]>;
  readonly fallocate: CFunction<[fd: number, mode: number, offset: number, length: number]>;
  /** Returns the error number itself. */
  readonly posixFallocate: CFunction<[fd: number, offset: number, length: number]>;
  readonly copyFileRange: CFunction<
    [fdIn: number, offsetIn: Pointer, fdOut: number, offsetOut: Pointer, length: number, flags: number]
  >;
  /** Undefined where the C library is older than the call. */
  readonly preadv2:
    | CFunction<[fd: number, iov: Uint8Array, count: number, offset: number, flags: number]>
    | undefined;
  /** Does not return. */
  readonly exit: (code: number) => void;
  readonly statx:
    | CFunction<[fd: number, path: string, flags: number, mask: number, into: Uint8Array]>
    | undefined;
}

const SUPPORTED_MACHINES: ReadonlySet<string> = new Set(['x64', 'arm64', 'riscv64', 'loong64']);

/** The part of koffi's interface that is used; its types are not needed to run without it. */
interface Koffi {
  load(path: string | null): { func(prototype: string): unknown };
  errno(): number;
  address(buffer: Uint8Array): bigint;
}

function load(): Libc | undefined {
  // For tests of the fallbacks.
  if (process.env.IMGD_NO_HOST_CALLS === '1') return undefined;
  if (process.platform !== 'linux' || !SUPPORTED_MACHINES.has(process.arch)) return undefined;
  try {
    const koffi = createRequire(import.meta.url)('koffi') as Koffi;
    const library = koffi.load(null);
    const bind = <A extends readonly unknown[]>(prototype: string) => library.func(prototype) as CFunction<A>;
    const bindIfPresent = <A extends readonly unknown[]>(prototype: string) => {
      try {
        return bind<A>(prototype);
      } catch {
        return undefined;
      }
    };
    return {
      errno: () => koffi.errno(),
      address: (buffer) => koffi.address(buffer),
      fcntl: bind('int fcntl(int fd, int command, void *argument)'),
      ioctl: bind('int ioctl(int fd, ulong request, void *argument)'),
      lseek: bind('int64_t lseek(int fd, int64_t offset, int whence)'),
      fallocate: bind('int fallocate(int fd, int mode, int64_t offset, int64_t length)'),
      posixFallocate: bind('int posix_fallocate(int fd, int64_t offset, int64_t length)'),
      copyFileRange: bind(
        'int64_t copy_file_range(int fd_in, void *off_in, int fd_out, void *off_out, size_t length, uint flags)',
      ),
      preadv2: bindIfPresent('int64_t preadv2(int fd, void *iov, int count, int64_t offset, int flags)'),
      exit: library.func('void _exit(int code)') as Libc['exit'],
      statx: bindIfPresent('int statx(int fd, str path, int flags, uint mask, void *into)'),
    };
  } catch {
    return undefined;
  }
}

let loaded: { readonly libc: Libc | undefined } | undefined;

export function libc(): Libc | undefined {
  loaded ??= { libc: load() };
  return loaded.libc;
}

/**
 * Ends the process at once, with nothing run any more: all output must be written. Node's own exit joins V8's threads,
 * whatever they are compiling; and one that waits for a garbage collection of the main thread, it joins without end
 * (nodejs/node#54918, #64274).
 */
export function exitNow(code: number): never {
  loaded?.libc?.exit(code);
  process.exit(code);
}

/** Runs a call in Node's thread pool, again where a signal interrupted it. Rejects with an error as Node's own. */
export function callAsync<A extends readonly unknown[]>(
  name: string,
  c: Libc,
  call: CFunction<A>,
  ...args: A
): Promise<number> {
  return new Promise((resolve, reject) => {
    const start = () => {
      call.async(...args, (error, result) => {
        // koffi carries the errno of the other thread into this callback, and no further.
        const number = error || result >= 0 ? 0 : c.errno();
        if (error) reject(error);
        else if (result >= 0) resolve(result);
        else if (errnoName(number) === 'EINTR') start();
        else reject(systemError(name, number));
      });
    };
    start();
  });
}
