/**
 * Requests on a descriptor opened with O_DIRECT, whose memory, offsets and lengths must be aligned. Others are carried in
 * aligned buffers of our own; blocks that a request covers in part are read, changed and written back.
 */
import { readFully, setLength, writeFully } from './file-io.js';
import { allocateAligned, isAligned } from './host/aligned.js';

/** A carrying buffer's bytes; longer requests take several turns. */
const BOUNCE = 1024 * 1024;
/** Buffers kept for the next request. */
const KEPT = 8;

/** Many at once, or one alone; in the order of asking. */
class Gate {
  #inside = 0;
  #alone = false;
  readonly #waiting: { readonly alone: boolean; enter(): void }[] = [];

  async run<T>(alone: boolean, work: () => Promise<T>): Promise<T> {
    if (this.#alone || this.#waiting.length > 0 || (alone && this.#inside > 0)) {
      await new Promise<void>((enter) => this.#waiting.push({ alone, enter }));
    } else {
      this.#enter(alone);
    }
    try {
      return await work();
    } finally {
      this.#inside--;
      if (alone) this.#alone = false;
      this.#admit();
    }
  }

  #enter(alone: boolean): void {
    this.#inside++;
    this.#alone = alone;
  }

  #admit(): void {
    for (;;) {
      const first = this.#waiting[0];
      if (first === undefined || this.#alone || (first.alone && this.#inside > 0)) return;
      this.#waiting.shift();
      this.#enter(first.alone);
      first.enter();
    }
  }
}

export class DirectIo {
  readonly #fd: number;
  readonly #memory: number;
  /** Offsets and lengths are multiples of this, in bytes. */
  readonly alignment: number;
  readonly #gate = new Gate();
  readonly #buffers: Uint8Array[] = [];

  constructor(fd: number, alignment: { readonly memory: number; readonly offset: number }) {
    this.#fd = fd;
    this.#memory = alignment.memory;
    this.alignment = Math.max(alignment.memory, alignment.offset);
  }

  async read(at: number, into: Uint8Array): Promise<void> {
    if (this.#fits(at, into)) return readFully(this.#fd, at, into, this.alignment);
    await this.#withBuffer(async (buffer) => {
      for (let done = 0; done < into.length; ) {
        const { start, skip, count, length } = this.#window(at + done, into.length - done);
        const part = buffer.subarray(0, length);
        await readFully(this.#fd, start, part, this.alignment);
        into.set(part.subarray(skip, skip + count), done);
        done += count;
      }
    });
  }

  /** `sizeAfter` is how long the file is to be after, in bytes: padding to a whole block must not make it longer. */
  async write(at: number, from: Uint8Array, sizeAfter: () => number): Promise<void> {
    const whole = at % this.alignment === 0 && from.length % this.alignment === 0;
    await this.#gate.run(!whole, async () => {
      if (this.#fits(at, from)) return writeFully(this.#fd, at, from);
      await this.#withBuffer(async (buffer) => {
        for (let done = 0; done < from.length; ) {
          const { start, skip, count, length } = this.#window(at + done, from.length - done);
          const part = buffer.subarray(0, length);
          if (skip > 0 || skip + count < length) await this.#fillEdges(start, part, skip, count);
          part.set(from.subarray(done, done + count), skip);
          await writeFully(this.#fd, start, part);
          done += count;
          const size = Math.max(sizeAfter(), at + done);
          if (start + length > size) await setLength(this.#fd, size);
        }
      });
    });
  }

  /** Any other change of the file, kept apart from blocks being read, changed and written back. */
  change<T>(work: () => Promise<T>): Promise<T> {
    return this.#gate.run(false, work);
  }

  #fits(at: number, buffer: Uint8Array): boolean {
    return (
      at % this.alignment === 0 && buffer.length % this.alignment === 0 && isAligned(buffer, this.#memory)
    );
  }

  /** The aligned run around the first part of a request that one buffer holds. */
  #window(at: number, length: number): { start: number; skip: number; count: number; length: number } {
    const skip = at % this.alignment;
    const count = Math.min(length, BOUNCE - skip);
    return {
      start: at - skip,
      skip,
      count,
      length: Math.ceil((skip + count) / this.alignment) * this.alignment,
    };
  }

  /** Reads the first and last block of the part where the new bytes do not cover them. */
  async #fillEdges(start: number, part: Uint8Array, skip: number, count: number): Promise<void> {
    const block = this.alignment;
    if (skip > 0) await readFully(this.#fd, start, part.subarray(0, block), block);
    const last = part.length - block;
    if (skip + count < part.length && (last > 0 || skip === 0)) {
      await readFully(this.#fd, start + last, part.subarray(last), block);
    }
  }

  async #withBuffer<T>(work: (buffer: Uint8Array) => Promise<T>): Promise<T> {
    const buffer = this.#buffers.pop() ?? allocateAligned(BOUNCE, Math.max(this.#memory, this.alignment));
    try {
      return await work(buffer);
    } finally {
      if (this.#buffers.length < KEPT) this.#buffers.push(buffer);
    }
  }
}
