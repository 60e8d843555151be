import { describe, expect, it } from 'vitest';
import { LineSplitter } from '../../src/protocol/framing.js';
import { nestedDeeperThan } from '../../src/protocol/json.js';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const lines = (frames: ReturnType<LineSplitter['push']>): string[] =>
  frames.map((frame) => (frame.kind === 'line' ? frame.text : `<${frame.kind}>`));

describe('LineSplitter', () => {
  it('finds lines wherever chunks are cut, also inside a character', () => {
    const whole = bytes('{"a":"é€😀"}\n\r\n\n[1]\r\n{}\n');
    for (let cut = 0; cut <= whole.length; cut++) {
      const splitter = new LineSplitter(100);
      const found = [...lines(splitter.push(whole.slice(0, cut))), ...lines(splitter.push(whole.slice(cut)))];
      expect(found).toEqual(['{"a":"é€😀"}', '[1]\r', '{}']);
    }
  });

  it('takes a line of exactly the limit and no longer one, whether or not its end has come', () => {
    expect(lines(new LineSplitter(5).push(bytes('12345\n')))).toEqual(['12345']);
    expect(lines(new LineSplitter(5).push(bytes('ok\n123456\nafter\n')))).toEqual(['ok', '<too-long>']);
    const splitter = new LineSplitter(5);
    expect(lines(splitter.push(bytes('123')))).toEqual([]);
    expect(lines(splitter.push(bytes('456')))).toEqual(['<too-long>']);
    expect(lines(splitter.push(bytes('7\n8\n')))).toEqual([]);
    expect(lines(splitter.end())).toEqual([]);
  });

  it('goes on after a line that is not UTF-8', () => {
    const splitter = new LineSplitter(100);
    expect(lines(splitter.push(new Uint8Array([0x22, 0xff, 0x22, 0x0a, 0x31, 0x0a])))).toEqual([
      '<invalid-utf8>',
      '1',
    ]);
    expect(lines(splitter.push(new Uint8Array([0xed, 0xa0, 0x80, 0x0a])))).toEqual(['<invalid-utf8>']);
  });

  it('takes what is left at the end for a line', () => {
    const splitter = new LineSplitter(100);
    splitter.push(bytes('[1'));
    splitter.push(bytes(']'));
    expect(lines(splitter.end())).toEqual(['[1]']);
  });
});

describe('nestedDeeperThan', () => {
  it('counts brackets and braces, but none in strings', () => {
    expect(nestedDeeperThan('[[{"a":[1]}]]', 4)).toBe(false);
    expect(nestedDeeperThan('[[{"a":[1]}]]', 3)).toBe(true);
    expect(nestedDeeperThan('["[[[[[[", "\\"[[[[[[", "\\\\", {}]', 2)).toBe(false);
    expect(nestedDeeperThan('[],[],[],[],[],[]', 1)).toBe(false);
  });
});
