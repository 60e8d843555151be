import { describe, expect, it } from 'vitest';
import type { OptionTable } from '../../clients/qemu-img/declare.js';
import { Exit } from '../../clients/qemu-img/errors.js';
import { getopt } from '../../clients/qemu-img/getopt.js';

const table = {
  quiet: { short: 'q', long: ['quiet'], doc: '' },
  format: { short: 'f', long: ['format'], argument: 'FMT', doc: '' },
  force: { long: ['force-share'], doc: '' },
  left: { long: ['a-format', 'left-format'], argument: 'FMT', doc: '' },
  options: { short: 'o', long: ['options'], argument: 'O', doc: '', list: true },
  size: { short: 's', spelled: ['size'], argument: 'N', doc: '', parse: Number },
} as const satisfies OptionTable;

const parse = (...words: string[]) => getopt('qemu-img test', words, table);

/** The message and hint of the command line's error. */
function failure(...words: string[]): string {
  try {
    parse(...words);
  } catch (error) {
    if (error instanceof Exit) return `${error.program}: ${error.text} | ${error.hint}`;
    throw error;
  }
  return 'no error';
}

describe('getopt', () => {
  it('permutes: options may follow the words that are none', () => {
    expect(parse('a', '-q', 'b', '--format', 'raw', 'c')).toEqual({
      values: { quiet: true, format: 'raw' },
      positional: ['a', 'b', 'c'],
    });
  });

  it('stops at --, and takes a lone dash for a word', () => {
    expect(parse('-q', '-', '--', '-f', '--')).toEqual({
      values: { quiet: true },
      positional: ['-', '-f', '--'],
    });
  });

  it('stops at the first word where asked to', () => {
    expect(getopt('qemu-img', ['-q', 'info', '-f', 'raw'], table, true).positional).toEqual([
      'info',
      '-f',
      'raw',
    ]);
  });

  it('reads clusters, glued and separate arguments', () => {
    expect(parse('-qfraw').values).toEqual({ quiet: true, format: 'raw' });
    expect(parse('-f', '-q').values).toEqual({ format: '-q' });
    expect(parse('--format=a=b').values).toEqual({ format: 'a=b' });
    expect(parse('--format=').values).toEqual({ format: '' });
  });

  it('takes unambiguous abbreviations, and two names of one option for one', () => {
    expect(parse('--quie', '--form', 'x').values).toEqual({ quiet: true, format: 'x' });
    expect(parse('--left', 'x').values).toEqual({ left: 'x' });
  });

  it('collects lists, keeps the last of the others, parses arguments', () => {
    expect(parse('-o', 'a', '-ob', '-f', '1', '-f', '2', '-s', '7').values).toEqual({
      options: ['a', 'b'],
      format: '2',
      size: 7,
    });
  });

  it('takes names that only count when spelled out', () => {
    expect(parse('--size', '3').values).toEqual({ size: 3 });
    expect(failure('--siz', '3')).toContain("unrecognized option '--siz'");
  });

  it('has the C library’s error texts', () => {
    const hint = "Try 'qemu-img test --help' for more info";
    expect(failure('-z')).toBe(`qemu-img test: invalid option -- 'z' | ${hint}`);
    expect(failure('--zz=1')).toBe(`qemu-img test: unrecognized option '--zz=1' | ${hint}`);
    expect(failure('-qf')).toBe(`qemu-img test: option requires an argument -- 'f' | ${hint}`);
    expect(failure('--format')).toBe(`qemu-img test: option '--format' requires an argument | ${hint}`);
    expect(failure('--quiet=1')).toBe(`qemu-img test: option '--quiet' doesn't allow an argument | ${hint}`);
    expect(failure('--fo=x')).toBe(
      `qemu-img test: option '--fo=x' is ambiguous; possibilities: '--format' '--force-share' | ${hint}`,
    );
  });

  it('reports the first thing that is wrong', () => {
    expect(failure('-z', '--zz')).toContain("'z'");
  });
});
