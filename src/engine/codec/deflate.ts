/** DEFLATE (RFC 1951) raw and in zlib's wrapping (RFC 1950), whole buffers at a time, on libuv's thread pool. */
import { ImageError } from '../error.js';
import { nativeZlib, Z_BUF_ERROR, Z_OK, Z_STREAM_END } from './native-zlib.js';
import { inflatesHere } from './thread-pool.js';

const DEFAULT_LEVEL = -1;

/** Loading it takes 2 ms, which is for those alone who have no use of the native one. */
const nodeZlib = () => import('node:zlib');

export interface DeflateOptions {
  /** log2 of the window: 9 to 15; qcow2 demands 12. */
  readonly windowBits: number;
  /** 0 to 9; -1 is zlib's default (6). */
  readonly level?: number;
}

function corrupt(what: string): ImageError {
  return new ImageError('corrupt', `Invalid compressed data: ${what}`);
}

/** Compresses to a raw DEFLATE stream; undefined where that is not smaller than the data. */
export async function compressRaw(
  data: Uint8Array,
  options: DeflateOptions,
): Promise<Uint8Array | undefined> {
  const level = options.level ?? DEFAULT_LEVEL;
  const native = nativeZlib();
  if (native !== undefined) {
    // One byte less than the input: what does not fit is not worth storing.
    const output = Buffer.allocUnsafeSlow(Math.max(1, data.byteLength - 1));
    const { code, produced } = await native.deflate(-options.windowBits, level, data, output);
    return code === Z_STREAM_END ? output.subarray(0, produced) : undefined;
  }
  const zlib = await nodeZlib();
  const out = await new Promise<Buffer>((resolve, reject) => {
    zlib.deflateRaw(data, { windowBits: options.windowBits, level, memLevel: 9 }, (error, result) =>
      error ? reject(error) : resolve(result),
    );
  });
  return out.byteLength < data.byteLength ? out : undefined;
}

/** Compresses to a zlib stream (RFC 1950) with the largest window, whether that is smaller or not. */
export async function compressZlib(data: Uint8Array): Promise<Uint8Array> {
  const native = nativeZlib();
  if (native !== undefined) {
    // What does not compress is stored: 5 bytes a block of 16 KiB and less, and the wrapping.
    const output = Buffer.allocUnsafeSlow(data.byteLength + (data.byteLength >>> 10) + 64);
    const { code, produced } = await native.deflate(15, DEFAULT_LEVEL, data, output);
    if (code === Z_STREAM_END) return output.subarray(0, produced);
    throw new ImageError('internal', `deflate returned ${code}`);
  }
  const zlib = await nodeZlib();
  return new Promise<Buffer>((resolve, reject) => {
    zlib.deflate(data, (error, result) => (error ? reject(error) : resolve(result)));
  });
}

async function inflate(packed: Uint8Array, into: Uint8Array, windowBits: number): Promise<number> {
  const native = nativeZlib();
  if (native !== undefined) {
    const { code, produced } = inflatesHere(into.byteLength)
      ? native.inflateNow(windowBits, packed, into)
      : await native.inflate(windowBits, packed, into);
    // A stream that goes on past `into`, or input padding after it, is no error: qcow2 stores whole sectors.
    if (code === Z_STREAM_END || ((code === Z_OK || code === Z_BUF_ERROR) && produced === into.byteLength)) {
      return produced;
    }
    throw corrupt(`inflate returned ${code}`);
  }
  const zlib = await nodeZlib();
  return new Promise<number>((resolve, reject) => {
    const stream = windowBits < 0 ? zlib.createInflateRaw({ windowBits: -windowBits }) : zlib.createInflate();
    let produced = 0;
    const finish = () => {
      stream.destroy();
      resolve(produced);
    };
    stream.on('data', (chunk: Buffer) => {
      const take = Math.min(chunk.byteLength, into.byteLength - produced);
      into.set(chunk.subarray(0, take), produced);
      produced += take;
      if (produced === into.byteLength) finish();
    });
    stream.on('end', finish);
    stream.on('error', (error) => reject(corrupt(error.message)));
    stream.end(packed);
  });
}

/** Inflates a raw stream; it must fill `into` whole. Bytes after the stream are ignored. Throws `corrupt`. */
export async function inflateRaw(packed: Uint8Array, into: Uint8Array, windowBits: number): Promise<void> {
  const produced = await inflate(packed, into, -windowBits);
  if (produced < into.byteLength) throw corrupt('the stream is shorter than its cluster');
}

/**
 * Inflates a zlib-wrapped stream; where it is shorter than `into`, the rest becomes zeros. Returns how much there was,
 * for formats that have no such padding. Throws `corrupt`.
 */
export async function inflateZlib(packed: Uint8Array, into: Uint8Array): Promise<number> {
  const produced = await inflate(packed, into, 15);
  into.fill(0, produced);
  return produced;
}
