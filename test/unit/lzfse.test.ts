import { describe, expect, test } from 'vitest';
import { decodeLzfse } from '../../src/engine/codec/lzfse.js';
import { ImageError } from '../../src/engine/error.js';
import { lzfseStream, lzvnBlock, rawBlock, sampleText } from '../support/codec-streams.js';
import { lzfseText } from '../support/codec-vectors.js';
import { expectOnlyImageErrors } from '../support/damage.js';

function decoded(packed: Uint8Array, length: number): Buffer {
  const into = new Uint8Array(length);
  decodeLzfse(packed, into);
  return Buffer.from(into);
}

const text = sampleText(6000);
const packedBlock = lzfseText.subarray(0, lzfseText.length - 4);

/** The same block with plain tables (bvx1), which Apple's encoder does not write. */
function withPlainTables(block: Uint8Array): Uint8Array {
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  const word = (i: number) => view.getBigUint64(8 + 8 * i, true);
  const bits = (value: bigint, from: number, count: number) =>
    Number((value >> BigInt(from)) & ((1n << BigInt(count)) - 1n));
  const headerSize = bits(word(2), 0, 32);
  let stream = '';
  for (const byte of block.subarray(32, headerSize)) {
    stream += byte.toString(2).padStart(8, '0').split('').reverse().join('');
  }
  // Codes as they stand in the stream, lowest bit first, and how many value bits follow.
  const codes: readonly (readonly [string, number, number])[] = [
    ['0', 1, 0],
    ['10', 1, 2],
    ['110', 2, 4],
    ['1110', 4, 8],
    ['1111', 10, 24],
  ];
  const frequencies: number[] = [];
  let at = 0;
  while (frequencies.length < 360) {
    const [prefix, count, base] = codes.find(([code]) => stream.startsWith(code, at))!;
    at += prefix.length;
    const value = stream
      .slice(at, at + count)
      .split('')
      .reverse()
      .join('');
    at += count;
    frequencies.push(base + Number.parseInt(value, 2));
  }
  const out = Buffer.alloc(772);
  out.write('bvx1', 'latin1');
  const literalPayload = bits(word(0), 20, 20);
  const lmdPayload = bits(word(1), 40, 20);
  const wide = [
    view.getUint32(4, true),
    literalPayload + lmdPayload,
    bits(word(0), 0, 20),
    bits(word(0), 40, 20),
    literalPayload,
    lmdPayload,
  ];
  wide.forEach((value, i) => {
    out.writeUInt32LE(value, 4 + 4 * i);
  });
  out.writeInt32LE(bits(word(0), 60, 3) - 7, 28);
  for (let i = 0; i < 4; i++) out.writeUInt16LE(bits(word(1), 10 * i, 10), 32 + 2 * i);
  out.writeInt32LE(bits(word(1), 60, 3) - 7, 40);
  for (let i = 0; i < 3; i++) out.writeUInt16LE(bits(word(2), 32 + 10 * i, 10), 44 + 2 * i);
  frequencies.forEach((value, i) => {
    out.writeUInt16LE(value, 50 + 2 * i);
  });
  return Buffer.concat([out, block.subarray(headerSize)]);
}

describe('decodeLzfse', () => {
  test("decodes what Apple's lzfse wrote", () => {
    expect(decoded(lzfseText, 6000).equals(text)).toBe(true);
  });

  test('decodes blocks with plain tables', () => {
    expect(decoded(lzfseStream(withPlainTables(packedBlock)), 6000).equals(text)).toBe(true);
  });

  test('decodes raw and LZVN blocks', () => {
    expect(decoded(lzfseStream(rawBlock(text)), 6000).equals(text)).toBe(true);
    const long = sampleText(150_000);
    const packed = lzfseStream(lzvnBlock(long));
    expect(packed.length).toBeLessThan(80_000);
    expect(decoded(packed, long.length).equals(long)).toBe(true);
  });

  test('decodes several blocks of all kinds one after the other', () => {
    const stream = lzfseStream(
      packedBlock,
      rawBlock(text),
      lzvnBlock(text),
      packedBlock,
      rawBlock(new Uint8Array(0)),
    );
    expect(decoded(stream, 24_000).equals(Buffer.concat([text, text, text, text]))).toBe(true);
  });

  test('decodes an empty stream', () => {
    expect(decoded(lzfseStream(), 0)).toHaveLength(0);
  });

  test('refuses a stream that holds more or less than wanted', () => {
    for (const block of [packedBlock, rawBlock(text), lzvnBlock(text)]) {
      expect(() => decoded(lzfseStream(block), 5999)).toThrow('Invalid LZFSE data: the stream is too long');
      expect(() => decoded(lzfseStream(block), 6001)).toThrow('Invalid LZFSE data: the stream is too short');
      expect(() => decoded(block, 6000)).toThrow('Invalid LZFSE data: the stream is too short');
    }
  });

  test('refuses unknown blocks and matches before the start', () => {
    expect(() => decoded(Buffer.from('bvx9....'), 4)).toThrow('unknown block');
    // sml_d with a distance of 0x201 and one literal
    const payload = Uint8Array.of(0x42, 0x01, 0x61, 6, 0, 0, 0, 0, 0, 0, 0);
    const block = Buffer.concat([
      Buffer.from('bvxn'),
      new Uint8Array(Uint32Array.of(4, payload.length).buffer),
      payload,
    ]);
    expect(() => decoded(lzfseStream(block), 4)).toThrow('a match refers to before the start');
  });

  test('throws nothing but ImageErrors on damaged streams', () => {
    expectOnlyImageErrors(lzfseText, (packed) => decoded(packed, 6000));
    expectOnlyImageErrors(lzfseStream(withPlainTables(packedBlock)), (packed) => decoded(packed, 6000));
    expectOnlyImageErrors(lzfseStream(lzvnBlock(text)), (packed) => decoded(packed, 6000));
    expect(ImageError).toBeDefined();
  });
});
