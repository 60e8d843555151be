/** Reads packed chunks: each is decoded as a whole, and the last few are kept for readers that take them in pieces. */
import { decodeAdc } from '../../codec/adc.js';
import { decodeBzip2 } from '../../codec/bzip2.js';
import { inflateZlib } from '../../codec/deflate.js';
import { decodeLzfse } from '../../codec/lzfse.js';
import { ImageError } from '../../error.js';
import type { Storage } from '../../storage/storage.js';
import type { ChunkTable } from './chunks.js';
import { ADC, BZIP2, LZFSE, ZLIB } from './layout.js';

/** Decoded chunks kept, in bytes; the newest is kept whatever its size (64 MiB at most). */
const CACHE_BYTES = 8 * 1024 * 1024;
/** Chunks from this size on are decoded one at a time, so that many requests at once do not take memory without bound. */
const LARGE_BYTES = 4 * 1024 * 1024;

async function decode(kind: number, packed: Uint8Array, into: Uint8Array): Promise<void> {
  switch (kind) {
    case ZLIB:
      if ((await inflateZlib(packed, into)) < into.byteLength) {
        throw new ImageError('corrupt', 'Invalid compressed data: the stream is too short');
      }
      return;
    case BZIP2:
      return decodeBzip2(packed, into);
    case LZFSE:
      return decodeLzfse(packed, into);
    case ADC:
      return decodeAdc(packed, into);
    default:
      throw new ImageError('internal', `no decoder for dmg chunks of kind ${kind.toString(16)}`);
  }
}

export class Unpacker {
  readonly #file: Storage;
  readonly #table: ChunkTable;
  /** By row, oldest first; promises, so that two readers of one chunk wait for one decoding. */
  readonly #cache = new Map<number, Promise<Uint8Array>>();
  #cachedBytes = 0;
  #largeTurn: Promise<unknown> = Promise.resolve();

  constructor(file: Storage, table: ChunkTable) {
    this.#file = file;
    this.#table = table;
  }

  /** Fills `into` with what the chunk in `row` unpacks to, from `skip` bytes on. */
  async read(row: number, skip: number, into: Uint8Array): Promise<void> {
    const size = this.#table.unpacked[row]!;
    const kept = this.#cache.get(row);
    if (kept === undefined && skip === 0 && into.byteLength === size) {
      await this.#unpack(row, into);
      return;
    }
    const whole = await (kept ?? this.#keep(row, size));
    into.set(whole.subarray(skip, skip + into.byteLength));
  }

  #keep(row: number, size: number): Promise<Uint8Array> {
    for (const [old] of this.#cache) {
      if (this.#cachedBytes + size <= CACHE_BYTES) break;
      this.#forget(old);
    }
    const whole = this.#unpackNew(row, size);
    this.#cache.set(row, whole);
    this.#cachedBytes += size;
    whole.catch(() => {
      if (this.#cache.get(row) === whole) this.#forget(row);
    });
    return whole;
  }

  #forget(row: number): void {
    if (this.#cache.delete(row)) this.#cachedBytes -= this.#table.unpacked[row]!;
  }

  async #unpackNew(row: number, size: number): Promise<Uint8Array> {
    return this.#inTurn(size, async () => {
      const whole = new Uint8Array(size);
      await this.#decode(row, whole);
      return whole;
    });
  }

  #unpack(row: number, into: Uint8Array): Promise<void> {
    return this.#inTurn(into.byteLength, () => this.#decode(row, into));
  }

  #inTurn<T>(size: number, work: () => Promise<T>): Promise<T> {
    if (size < LARGE_BYTES) return work();
    const done = this.#largeTurn.then(work);
    this.#largeTurn = done.catch(() => undefined);
    return done;
  }

  async #decode(row: number, into: Uint8Array): Promise<void> {
    const table = this.#table;
    const packed = new Uint8Array(table.lengths[row]!);
    await this.#file.read(table.offsets[row]!, packed);
    try {
      await decode(table.kinds[row]!, packed, into);
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
      throw error.prefixed(`Could not unpack the chunk at guest offset ${table.starts[row]}: `, {
        path: this.#file.filename,
        offset: table.offsets[row]!,
      });
    }
  }
}
