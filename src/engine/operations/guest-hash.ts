/** Hashes over guest bytes in guest order, from pieces that come as they come. */
import { createHash } from 'node:crypto';

/** An algorithm's name, as parameters and results have it, and how it is told to people. */
const SPELLED = { sha256: 'SHA-256', blake3: 'BLAKE3' } as const;
export type HashName = keyof typeof SPELLED;
export const HASHES = Object.keys(SPELLED) as readonly HashName[];
export type Digests = Partial<Record<HashName, string>>;

export function spelled(name: HashName): string {
  return SPELLED[name];
}

interface Hasher {
  update(bytes: Uint8Array): unknown;
  digest(encoding: 'hex'): string;
}

async function hasher(name: HashName): Promise<Hasher> {
  if (name === 'sha256') return createHash('sha256');
  // WebAssembly; loaded only where it is asked for.
  const { createBLAKE3 } = await import('hash-wasm');
  return (await createBLAKE3()).init();
}

/** Zeros are hashed, and skipped bytes read, so many at once. */
const CHUNK = 1024 * 1024;
const ZEROS = Buffer.alloc(CHUNK);

interface Piece {
  readonly length: number;
  /** Bytes of a window; absent: to be had from `read`, or zeros. */
  readonly bytes?: Buffer;
  readonly read?: ((at: number, into: Buffer) => Promise<void>) | undefined;
  taken?(): void;
}

export class GuestHash {
  readonly #hashes: readonly (readonly [HashName, Hasher])[];
  readonly #pieces = new Map<number, Piece>();
  /** Throws where the job is cancelled. */
  readonly #check: () => void;
  #position = 0;
  #pumping = false;
  #failure: { readonly error: unknown } | undefined;
  #settled: (() => void) | undefined;

  private constructor(hashes: readonly (readonly [HashName, Hasher])[], check: () => void) {
    this.#hashes = hashes;
    this.#check = check;
  }

  static async of(names: readonly HashName[], check: () => void): Promise<GuestHash> {
    const hashes = names.map(async (name) => [name, await hasher(name)] as const);
    return new GuestHash(await Promise.all(hashes), check);
  }

  /** Resolves when the bytes have been taken, which is when all before them have been. */
  data(at: number, bytes: Buffer): Promise<void> {
    if (this.#failure !== undefined) return Promise.resolve();
    return new Promise((taken) => this.#add(at, { length: bytes.byteLength, bytes, taken }));
  }

  zeros(at: number, length: number): void {
    this.#add(at, { length });
  }

  /** Bytes that are not copied, and are read for the hash alone. */
  skipped(at: number, length: number, read: (at: number, into: Buffer) => Promise<void>): void {
    this.#add(at, { length, read });
  }

  /** The copy has failed: nobody waits for pieces that will not come. */
  abandon(error: unknown): void {
    this.#failure ??= { error };
    for (const piece of this.#pieces.values()) piece.taken?.();
    this.#pieces.clear();
    this.#settled?.();
  }

  /** Once all pieces have been told: the hashes in hex. */
  async digest(): Promise<Digests> {
    if (this.#pumping) {
      await new Promise<void>((settled) => {
        this.#settled = settled;
      });
    }
    if (this.#failure !== undefined) throw this.#failure.error;
    return Object.fromEntries(this.#hashes.map(([name, hash]) => [name, hash.digest('hex')]));
  }

  #add(at: number, piece: Piece): void {
    if (piece.length === 0 || this.#failure !== undefined) {
      piece.taken?.();
      return;
    }
    this.#pieces.set(at, piece);
    if (!this.#pumping && at === this.#position) void this.#pump();
  }

  async #pump(): Promise<void> {
    this.#pumping = true;
    try {
      for (;;) {
        const piece = this.#pieces.get(this.#position);
        if (piece === undefined) break;
        if (piece.bytes !== undefined) this.#update(piece.bytes);
        else await this.#long(piece);
        if (this.#failure !== undefined) break;
        this.#pieces.delete(this.#position);
        this.#position += piece.length;
        piece.taken?.();
      }
    } catch (error) {
      this.abandon(error);
    }
    this.#pumping = false;
    this.#settled?.();
  }

  #update(bytes: Uint8Array): void {
    for (const [, hash] of this.#hashes) hash.update(bytes);
  }

  async #long({ length, read }: Piece): Promise<void> {
    const buffer = read === undefined ? ZEROS : Buffer.allocUnsafe(Math.min(CHUNK, length));
    for (let done = 0; done < length; done += CHUNK) {
      this.#check();
      const part = buffer.subarray(0, Math.min(CHUNK, length - done));
      if (read === undefined) {
        // Other work of this thread, a cancel among it, is not kept waiting.
        if (done % (16 * CHUNK) === 0) await new Promise((resolve) => setImmediate(resolve));
      } else await read(this.#position + done, part);
      if (this.#failure !== undefined) return;
      this.#update(part);
    }
  }
}
