import { describe, expect, test } from 'vitest';
import { decodeBzip2 } from '../../src/engine/codec/bzip2.js';
import { ImageError } from '../../src/engine/error.js';
import { sampleText } from '../support/codec-streams.js';
import { bzip2Pattern, bzip2Runs, bzip2Text } from '../support/codec-vectors.js';
import { expectOnlyImageErrors } from '../support/damage.js';

function decoded(packed: Uint8Array, length: number): Uint8Array {
  const into = new Uint8Array(length);
  decodeBzip2(packed, into);
  return into;
}

describe('decodeBzip2', () => {
  test('decodes what bzip2 wrote', () => {
    expect(Buffer.from(decoded(bzip2Text, 6000)).equals(sampleText(6000))).toBe(true);
  });

  test('decodes a stream of several blocks', () => {
    const pattern = Uint8Array.from({ length: 256_000 }, (_, i) => (i % 50) * 5);
    expect(Buffer.from(decoded(bzip2Pattern, 256_000)).equals(pattern)).toBe(true);
  });

  test('counts runs of four and more', () => {
    const runs = `${'aaaa'.repeat(3)}b${'a'.repeat(9)}${'c'.repeat(300)}dddd`;
    expect(Buffer.from(decoded(bzip2Runs, runs.length)).toString()).toBe(runs);
  });

  test('ignores bytes after the stream', () => {
    expect(decoded(Buffer.concat([bzip2Text, Buffer.from('BZh9')]), 6000)).toHaveLength(6000);
  });

  test('refuses a stream that holds more or less than wanted', () => {
    expect(() => decoded(bzip2Text, 5999)).toThrow('Invalid bzip2 data: the stream is too long');
    expect(() => decoded(bzip2Text, 6001)).toThrow('Invalid bzip2 data: the stream is too short');
    expect(() => decoded(bzip2Pattern, 1000)).toThrow(ImageError);
  });

  test('notices damage by the checksums', () => {
    const blockCrc = bzip2Text.slice();
    blockCrc[10]! ^= 1;
    expect(() => decoded(blockCrc, 6000)).toThrow('a block has a wrong checksum');
    const origin = bzip2Text.slice();
    origin[16]! ^= 4;
    expect(() => decoded(origin, 6000)).toThrow(ImageError);
  });

  test('refuses what is no bzip2 stream', () => {
    expect(() => decoded(new Uint8Array(0), 10)).toThrow(ImageError);
    expect(() => decoded(Buffer.from('BZh0..........'), 10)).toThrow('a wrong block size');
    expect(() => decoded(Buffer.from('hello, world.....'), 10)).toThrow('no stream header');
  });

  test('throws nothing but ImageErrors on damaged streams', () => {
    expectOnlyImageErrors(bzip2Text, (packed) => decoded(packed, 6000));
    expectOnlyImageErrors(bzip2Runs, (packed) => decoded(packed, 326));
  });
});
