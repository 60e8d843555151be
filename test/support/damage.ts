import { ImageError } from '../../src/engine/error.js';

/** Cuts a stream at every length (or 500 of them) and flips bits all over it: decoding may fail, but as it should. */
export function expectOnlyImageErrors(stream: Uint8Array, decode: (stream: Uint8Array) => void): void {
  const attempt = (damaged: Uint8Array, what: string) => {
    try {
      decode(damaged);
    } catch (error) {
      if (!(error instanceof ImageError)) throw new Error(`${what}: ${String(error)}`, { cause: error });
    }
  };
  const step = Math.max(1, Math.floor(stream.length / 500));
  for (let at = 0; at < stream.length; at += step) {
    attempt(stream.slice(0, at), `cut at ${at}`);
    for (const bits of [0x01, 0x80, 0xff]) {
      const damaged = new Uint8Array(stream); // not slice(): a Buffer's would be the same bytes
      damaged[at]! ^= bits;
      attempt(damaged, `byte ${at} ^ ${bits}`);
    }
  }
}
