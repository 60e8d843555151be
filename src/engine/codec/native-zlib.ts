/**
 * The zlib that Node itself carries, called on libuv's thread pool. Node exports zlib's symbols for its addons; calling
 * them with reused stream states saves node:zlib's set-up per call (some 80 us, as long as a cluster takes to inflate)
 * and its copies. Where the symbols are not there, `nativeZlib` is undefined and callers use node:zlib.
 */
import { createRequire } from 'node:module';
import { onThreadPool } from './thread-pool.js';

type Call = (...args: unknown[]) => number;
type AsyncCall = Call & { async: (...args: unknown[]) => void };

/** sizeof(z_stream) and its fields' offsets on LP64 systems (zlib.h). */
const Z_STREAM_SIZE = 112;
const NEXT_IN = 0;
const AVAIL_IN = 8;
const NEXT_OUT = 24;
const AVAIL_OUT = 32;

export const Z_OK = 0;
export const Z_STREAM_END = 1;
export const Z_BUF_ERROR = -5;
const Z_FINISH = 4;
const Z_DEFLATED = 8;
/** What deflateInit2_ and inflateInit2_ compare: only the first character matters. */
const ZLIB_VERSION = '1.2.11';

export interface ZResult {
  /** zlib's return code. */
  readonly code: number;
  /** Bytes put into the output buffer. */
  readonly produced: number;
  /** Bytes taken from the input buffer. */
  readonly consumed: number;
}

/** One z_stream, made once and reset before each use. Runs one call at a time. */
interface ZStream {
  run(input: Uint8Array, output: Uint8Array): Promise<ZResult>;
  /** The same in this thread. */
  runNow(input: Uint8Array, output: Uint8Array): ZResult;
}

export interface NativeZlib {
  /** One call of deflate(Z_FINISH) with a window of 2^windowBits (negative: raw). */
  deflate(windowBits: number, level: number, input: Uint8Array, output: Uint8Array): Promise<ZResult>;
  /** One call of inflate(Z_FINISH); windowBits as in inflateInit2 (negative: raw). */
  inflate(windowBits: number, input: Uint8Array, output: Uint8Array): Promise<ZResult>;
  /** The same in this thread: for units that take no longer than handing them to another. */
  inflateNow(windowBits: number, input: Uint8Array, output: Uint8Array): ZResult;
}

function bind(): NativeZlib | undefined {
  let koffi: typeof import('koffi');
  let library: ReturnType<typeof koffi.load>;
  const functions: Record<string, AsyncCall> = {};
  try {
    koffi = createRequire(import.meta.url)('koffi');
    library = koffi.load(null);
    const declare = (name: string, args: string) => {
      functions[name] = library.func(`int ${name}(${args})`) as unknown as AsyncCall;
    };
    declare(
      'deflateInit2_',
      'void *s, int level, int method, int bits, int mem, int strategy, const char *v, int size',
    );
    declare('inflateInit2_', 'void *s, int bits, const char *v, int size');
    declare('deflate', 'void *s, int flush');
    declare('inflate', 'void *s, int flush');
    declare('deflateReset', 'void *s');
    declare('inflateReset', 'void *s');
  } catch {
    return undefined;
  }
  if (process.arch !== 'x64' && process.arch !== 'arm64') return undefined;

  const stream = (kind: 'deflate' | 'inflate', init: (state: Buffer) => number): ZStream => {
    const state = Buffer.alloc(Z_STREAM_SIZE);
    if (init(state) !== Z_OK) throw new Error(`${kind}Init2 failed`);
    const work = functions[kind]!;
    const reset = functions[`${kind}Reset`]!;
    const prepare = (input: Uint8Array, output: Uint8Array) => {
      reset(state);
      state.writeBigUInt64LE(BigInt(koffi.address(input)), NEXT_IN);
      state.writeUInt32LE(input.byteLength, AVAIL_IN);
      state.writeBigUInt64LE(BigInt(koffi.address(output)), NEXT_OUT);
      state.writeUInt32LE(output.byteLength, AVAIL_OUT);
    };
    const result = (code: number, input: Uint8Array, output: Uint8Array): ZResult => ({
      code,
      produced: output.byteLength - state.readUInt32LE(AVAIL_OUT),
      consumed: input.byteLength - state.readUInt32LE(AVAIL_IN),
    });
    return {
      run: (input, output) =>
        new Promise((resolve, reject) => {
          prepare(input, output);
          // The closure keeps both buffers alive for as long as the other thread uses them.
          work.async(state, Z_FINISH, (error: unknown, code: number) => {
            if (error) reject(error);
            else resolve(result(code, input, output));
          });
        }),
      runNow: (input, output) => {
        prepare(input, output);
        return result(work(state, Z_FINISH), input, output);
      },
    };
  };

  /** Idle streams by their parameters; there are never more than were in use at once. */
  const idle = new Map<string, ZStream[]>();
  const poolOf = (key: string): ZStream[] => {
    let pool = idle.get(key);
    if (pool === undefined) {
      pool = [];
      idle.set(key, pool);
    }
    return pool;
  };
  const withStream = (
    key: string,
    make: () => ZStream,
    input: Uint8Array,
    output: Uint8Array,
  ): Promise<ZResult> =>
    onThreadPool(async () => {
      const pool = poolOf(key);
      const used = pool.pop() ?? make();
      try {
        return await used.run(input, output);
      } finally {
        pool.push(used);
      }
    });
  const inflater = (windowBits: number) =>
    stream('inflate', (state) => functions.inflateInit2_!(state, windowBits, ZLIB_VERSION, Z_STREAM_SIZE));

  return {
    deflate: (windowBits, level, input, output) =>
      withStream(
        `d${windowBits},${level}`,
        () =>
          stream('deflate', (state) =>
            functions.deflateInit2_!(state, level, Z_DEFLATED, windowBits, 9, 0, ZLIB_VERSION, Z_STREAM_SIZE),
          ),
        input,
        output,
      ),
    inflate: (windowBits, input, output) =>
      withStream(`i${windowBits}`, () => inflater(windowBits), input, output),
    inflateNow: (windowBits, input, output) => {
      const pool = poolOf(`i${windowBits}`);
      const used = pool.pop() ?? inflater(windowBits);
      pool.push(used);
      return used.runNow(input, output);
    },
  };
}

let bound: NativeZlib | undefined;
let tried = false;

/** Bound at the first use, so that an operation without compression never pays for it. */
export function nativeZlib(): NativeZlib | undefined {
  if (!tried) {
    tried = true;
    bound = bind();
  }
  return bound;
}
