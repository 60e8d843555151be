/** One JSON text a line, as UTF-8: how messages are told apart on a byte stream. */

export type Frame =
  | { readonly kind: 'line'; readonly text: string }
  /** The line was not UTF-8; the stream goes on with the next one. */
  | { readonly kind: 'invalid-utf8' }
  /** More than the limit without a line end. Nothing after it can be read: the stream is over. */
  | { readonly kind: 'too-long' };

const LINE_FEED = 0x0a;

/**
 * Cuts a byte stream into lines. Empty lines are left out; a carriage return before the line feed stays (JSON takes it for
 * space). Memory: at most `limit` bytes of an unfinished line.
 */
export class LineSplitter {
  readonly #limit: number;
  readonly #decoder = new TextDecoder('utf-8', { fatal: true });
  #parts: Uint8Array[] = [];
  #held = 0;
  #over = false;

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** The frames that `chunk` completes, in order. The chunk may be kept: the caller must not write to it afterwards. */
  push(chunk: Uint8Array): Frame[] {
    const frames: Frame[] = [];
    let from = 0;
    while (!this.#over) {
      const end = chunk.indexOf(LINE_FEED, from);
      const stop = end < 0 ? chunk.length : end;
      if (this.#held + stop - from > this.#limit) {
        this.#over = true;
        this.#parts = [];
        frames.push({ kind: 'too-long' });
        break;
      }
      if (stop > from) this.#parts.push(chunk.subarray(from, stop));
      this.#held += stop - from;
      if (end < 0) break;
      this.#finish(frames);
      from = end + 1;
    }
    return frames;
  }

  /** What is left without a line end when the peer has finished sending: taken for a line. */
  end(): Frame[] {
    const frames: Frame[] = [];
    if (!this.#over) this.#finish(frames);
    this.#over = true;
    return frames;
  }

  #finish(frames: Frame[]): void {
    const bytes = this.#parts.length === 1 ? this.#parts[0]! : join(this.#parts, this.#held);
    this.#parts = [];
    this.#held = 0;
    let text: string;
    try {
      text = this.#decoder.decode(bytes);
    } catch {
      frames.push({ kind: 'invalid-utf8' });
      return;
    }
    if (text.trim() !== '') frames.push({ kind: 'line', text });
  }
}

function join(parts: readonly Uint8Array[], length: number): Uint8Array {
  const whole = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
