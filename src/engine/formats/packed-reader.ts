/** Reading clusters that are stored compressed. */
import type { Range, Storage } from '../storage/storage.js';

/** What a format knows of its compressed clusters. */
export interface Unpacking {
  /** Throws where nothing can be stored there. */
  check?(stored: Range): void;
  /** Fills `into`, a cluster, from its stored form, which is at host offset `at`. */
  unpack(packed: Uint8Array, into: Uint8Array, at: number): Promise<void>;
}

export class PackedReader {
  readonly #file: Storage;
  readonly #clusterSize: number;
  readonly #unpacking: Unpacking;
  /** The cluster that was unpacked last: small reads come one after the other. */
  #last: { readonly at: number; readonly content: Uint8Array } | undefined;
  #age = 0;

  constructor(file: Storage, clusterSize: number, unpacking: Unpacking) {
    this.#file = file;
    this.#clusterSize = clusterSize;
    this.#unpacking = unpacking;
  }

  /** Compressed clusters were freed, or written over: what is stored where may change. */
  forget(): void {
    this.#last = undefined;
    this.#age++;
  }

  /** Fills `into` with the guest bytes from `offset` on of the cluster whose stored form is in `stored`. */
  async read(stored: Range, offset: number, into: Uint8Array): Promise<void> {
    const whole = offset === 0 && into.byteLength === this.#clusterSize;
    if (!whole && this.#last?.at === stored.at) {
      into.set(this.#last.content.subarray(offset, offset + into.byteLength));
      return;
    }
    this.#unpacking.check?.(stored);
    const age = this.#age;
    const packed = Buffer.allocUnsafe(stored.length);
    if (this.#file.readNow?.(stored.at, packed) !== true) await this.#file.read(stored.at, packed);
    const content = whole ? into : Buffer.allocUnsafe(this.#clusterSize);
    await this.#unpacking.unpack(packed, content, stored.at);
    if (whole) return;
    if (age === this.#age) this.#last = { at: stored.at, content };
    into.set(content.subarray(offset, offset + into.byteLength));
  }
}
