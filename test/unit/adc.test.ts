import { describe, expect, test } from 'vitest';
import { decodeAdc } from '../../src/engine/codec/adc.js';
import { adcCompress, adcStream, sampleText } from '../support/codec-streams.js';
import { expectOnlyImageErrors } from '../support/damage.js';

function decoded(packed: Uint8Array, length: number): string {
  const into = new Uint8Array(length);
  decodeAdc(packed, into);
  return Buffer.from(into).toString('latin1');
}

const plain = Buffer.from('abcdefgh');

describe('decodeAdc', () => {
  test('copies plain bytes', () => {
    expect(decoded(Uint8Array.of(0x82, 0x61, 0x62, 0x63), 3)).toBe('abc');
  });

  test('repeats from near (two bytes) and far (three bytes)', () => {
    // 0x04: length 1 + 3, distance 7 + 1
    expect(decoded(Uint8Array.of(0x87, ...plain, 0x04, 0x07), 12)).toBe('abcdefghabcd');
    // 0x41: length 1 + 4, distance 0x0007 + 1
    expect(decoded(Uint8Array.of(0x87, ...plain, 0x41, 0x00, 0x07), 13)).toBe('abcdefghabcde');
  });

  test('repeats overlapping matches', () => {
    expect(decoded(adcStream([{ plain: Buffer.from('x') }, { length: 18, distance: 1 }]), 19)).toBe(
      'x'.repeat(19),
    );
    expect(
      decoded(adcStream([{ plain: Buffer.from('ab') }, { length: 67, distance: 2, long: true }]), 69),
    ).toBe(`${'ab'.repeat(34)}a`);
  });

  test('decodes a long stream', () => {
    const text = sampleText(100_000);
    const packed = adcCompress(text);
    expect(packed.length).toBeLessThan(60_000);
    expect(decoded(packed, text.length)).toBe(Buffer.from(text).toString('latin1'));
  });

  test('refuses matches before the start, streams too short and too long', () => {
    expect(() => decoded(Uint8Array.of(0x80, 0x61, 0x00, 0x01), 4)).toThrow(
      'a match refers to before the start',
    );
    expect(() => decoded(Uint8Array.of(0x83, 0x61, 0x62), 4)).toThrow('the stream is too short');
    expect(() => decoded(Uint8Array.of(0x80, 0x61), 4)).toThrow('the stream is too short');
    expect(() => decoded(Uint8Array.of(0x80, 0x61, 0x04, 0x00), 4)).toThrow('the stream is too long');
    expect(() => decoded(new Uint8Array(0), 1)).toThrow('the stream is too short');
  });

  test('throws nothing but ImageErrors on damaged streams', () => {
    expectOnlyImageErrors(adcCompress(sampleText(3000)), (packed) => decoded(packed, 3000));
  });
});
