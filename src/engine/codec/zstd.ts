/**
 * Zstandard (RFC 8878), whole buffers at a time: the system's libzstd on libuv's thread pool, else node:zlib where it
 * has zstd (Node 22.15 and newer), else a clear error.
 */
import { createRequire } from 'node:module';
import { ImageError } from '../error.js';
import { inflatesHere, onThreadPool } from './thread-pool.js';

/** libzstd's ZSTD_CLEVEL_DEFAULT: what the reference writes with. */
const LEVEL = 3;

interface Zstd {
  compress(data: Uint8Array, output: Uint8Array): Promise<number | undefined>;
  /** Decodes the first frame of `packed`: how much it took and gave. */
  decompressFrame(packed: Uint8Array, into: Uint8Array): Promise<{ consumed: number; produced: number }>;
}

function corrupt(): ImageError {
  return new ImageError('corrupt', 'Invalid compressed data: not a whole zstd frame');
}

type Native = ((...args: unknown[]) => number | bigint) & { async: (...args: unknown[]) => void };

function bindLibrary(): Zstd | undefined {
  let isError: Native;
  let frameSize: Native;
  let compress: Native;
  let decompress: Native;
  let createC: () => unknown;
  let createD: () => unknown;
  try {
    const koffi: typeof import('koffi') = createRequire(import.meta.url)('koffi');
    const library = koffi.load(process.platform === 'darwin' ? 'libzstd.dylib' : 'libzstd.so.1');
    const declare = (text: string) => library.func(text) as unknown as Native;
    isError = declare('unsigned int ZSTD_isError(size_t code)');
    frameSize = declare('size_t ZSTD_findFrameCompressedSize(const void *src, size_t size)');
    compress = declare(
      'size_t ZSTD_compressCCtx(void *c, void *dst, size_t cap, const void *src, size_t n, int level)',
    );
    decompress = declare(
      'size_t ZSTD_decompressDCtx(void *d, void *dst, size_t cap, const void *src, size_t n)',
    );
    createC = declare('void *ZSTD_createCCtx()') as unknown as () => unknown;
    createD = declare('void *ZSTD_createDCtx()') as unknown as () => unknown;
  } catch {
    return undefined;
  }
  const pool = (create: () => unknown) => {
    const idle: unknown[] = [];
    return (work: Native, ...args: unknown[]): Promise<number> =>
      onThreadPool(() => {
        const context = idle.pop() ?? create();
        return new Promise((resolve, reject) => {
          work.async(context, ...args, (error: unknown, result: number | bigint) => {
            idle.push(context);
            if (error) reject(error);
            else resolve(isError(result) ? -1 : Number(result));
          });
        });
      });
  };
  const withC = pool(createC);
  const withD = pool(createD);
  let context: unknown;
  /** In this thread: as long as waking another takes. */
  const decompressNow = (into: Uint8Array, packed: Uint8Array, length: number): number => {
    context ??= createD();
    const result = decompress(context, into, into.byteLength, packed, length);
    return isError(result) ? -1 : Number(result);
  };
  return {
    async compress(data, output) {
      const size = await withC(compress, output, output.byteLength, data, data.byteLength, LEVEL);
      return size < 0 ? undefined : size;
    },
    async decompressFrame(packed, into) {
      const size = frameSize(packed, packed.byteLength);
      if (isError(size)) throw corrupt();
      const consumed = Number(size);
      const produced = inflatesHere(into.byteLength)
        ? decompressNow(into, packed, consumed)
        : await withD(decompress, into, into.byteLength, packed, consumed);
      if (produced < 0) throw corrupt();
      return { consumed, produced };
    },
  };
}

interface ZlibWithZstd {
  zstdCompress?(data: Uint8Array, callback: (error: Error | null, result: Buffer) => void): void;
  createZstdDecompress?(): NodeJS.ReadWriteStream & { destroy(): void; bytesWritten: number };
}

function bindNode(): Zstd | undefined {
  // Loading it takes 2 ms, which is for those alone who need it.
  const { zstdCompress, createZstdDecompress } = createRequire(import.meta.url)('node:zlib') as ZlibWithZstd;
  if (zstdCompress === undefined || createZstdDecompress === undefined) return undefined;
  return {
    compress: (data, output) =>
      new Promise((resolve, reject) => {
        zstdCompress(data, (error, result) => {
          if (error) reject(error);
          else if (result.byteLength > output.byteLength) resolve(undefined);
          else {
            output.set(result);
            resolve(result.byteLength);
          }
        });
      }),
    decompressFrame: (packed, into) =>
      new Promise((resolve, reject) => {
        const stream = createZstdDecompress();
        let produced = 0;
        const finish = () => {
          stream.destroy();
          resolve({ consumed: packed.byteLength, produced });
        };
        stream.on('data', (chunk: Buffer) => {
          const take = Math.min(chunk.byteLength, into.byteLength - produced);
          into.set(chunk.subarray(0, take), produced);
          produced += take;
          if (produced === into.byteLength) finish();
        });
        stream.on('end', finish);
        stream.on('error', () => (produced === into.byteLength ? finish() : reject(corrupt())));
        stream.end(packed);
      }),
  };
}

let bound: Zstd | undefined;

function zstd(): Zstd {
  bound ??= bindLibrary() ?? bindNode();
  if (bound === undefined) {
    throw new ImageError(
      'unsupported',
      'zstd is not available: neither libzstd.so.1 nor a Node.js with zstd is here',
    );
  }
  return bound;
}

/** True where zstd images can be read and written on this machine. */
export function zstdAvailable(): boolean {
  bound ??= bindLibrary() ?? bindNode();
  return bound !== undefined;
}

/** Compresses to one frame; undefined where that is not smaller than the data. */
export async function compressZstd(data: Uint8Array): Promise<Uint8Array | undefined> {
  const output = Buffer.allocUnsafeSlow(Math.max(1, data.byteLength - 1));
  const size = await zstd().compress(data, output);
  return size === undefined ? undefined : output.subarray(0, size);
}

/** Decodes frames until `into` is full; bytes after that are ignored. Throws `corrupt` where there are too few. */
export async function decompressZstd(packed: Uint8Array, into: Uint8Array): Promise<void> {
  let from = 0;
  let to = 0;
  while (to < into.byteLength) {
    const { consumed, produced } = await zstd().decompressFrame(packed.subarray(from), into.subarray(to));
    if (consumed === 0 || from >= packed.byteLength) throw corrupt();
    from += consumed;
    to += produced;
  }
}
