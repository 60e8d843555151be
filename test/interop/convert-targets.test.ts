/** What conversions must keep: bytes of the target outside of what is written, and files that are sources or backing files. */
import { linkSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { qemuImg } from '../support/client.js';
import { describeInterop, type RunResult, reference, run, tempDir } from '../support/reference.js';

const folder = tempDir();
const at = (name: string) => join(folder, name);
const theirs = (...args: string[]) => good(run(reference.qemuImg!, args));
const ours = (...args: string[]) => good(qemuImg(args));
const io = (path: string, ...commands: string[]) =>
  good(run(reference.qemuIo!, [...commands.flatMap((command) => ['-c', command]), path]));

function good(result: RunResult): RunResult {
  expect(result, result.stderr).toMatchObject({ status: 0 });
  return result;
}

function same(one: string, other: string): void {
  expect(theirs('compare', one, other).stdout).toBe('Images are identical.\n');
  expect(theirs('check', '-q', other).status).toBe(0);
}

/** An overlay whose clusters are smaller than the target's: what it holds begins and ends inside of them. */
function overlay(name: string): { source: string; base: string } {
  const base = at(`${name}-base`);
  const source = at(`${name}-source`);
  theirs('create', '-q', '-f', 'qcow2', base, '1M');
  io(base, 'write -q -P 0x11 0 1M');
  theirs('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', '-b', base, '-F', 'qcow2', source);
  io(source, 'write -q -P 0x22 4k 4k', 'write -q -P 0x33 70k 6k', 'write -q -z 200k 8k', 'write -q 1020k 4k');
  return { source, base };
}

describeInterop('targets of conversions', () => {
  it('compresses whole clusters where the source with -B holds parts of them', () => {
    const { source, base } = overlay('packed');
    ours('convert', '-c', '-O', 'qcow2', '-B', base, '-F', 'qcow2', source, at('packed'));
    same(source, at('packed'));
    // What the source does not hold is not copied either.
    expect(theirs('map', '--output=json', at('packed')).stdout).toMatch(/"depth": 1/);
  });

  it('hides what the target has below where the source has no backing file, or a shorter one', () => {
    const { base } = overlay('hidden');
    const short = at('hidden-short');
    theirs('create', '-q', '-f', 'raw', short, '300k');
    io(short, 'write -q -P 0x66 0 300k');
    for (const [format, below] of [
      ['qcow2', []],
      ['vmdk', []],
      ['qcow2', ['-b', short, '-F', 'raw']],
    ] as const) {
      const source = at('hidden-source');
      theirs('create', '-q', '-f', format, ...below, source, '1M');
      io(source, 'write -q -P 0x77 128k 64k');
      // With the same bytes below both, what is shared is not copied; past their ends nothing shows through.
      const target = below.length === 0 ? base : at('hidden-long');
      if (below.length > 0) {
        theirs('create', '-q', '-f', 'raw', target, '1M');
        io(target, 'write -q -P 0x66 0 1M');
      }
      ours(
        'convert',
        '-O',
        'qcow2',
        '-B',
        target,
        '-F',
        below.length === 0 ? 'qcow2' : 'raw',
        source,
        at('hidden'),
      );
      same(source, at('hidden'));
    }
  });

  it('keeps the rest of the last cluster of a larger target that is written compressed', () => {
    const [small, large] = [at('small'), at('large')];
    theirs('create', '-q', '-f', 'qcow2', small, '70k');
    io(small, 'write -q -P 0x55 0 70k');
    theirs('create', '-q', '-f', 'qcow2', large, '256k');
    io(large, 'write -q -P 0x44 0 256k');
    ours('convert', '-n', '-c', '-O', 'qcow2', small, large);
    theirs('convert', '-O', 'raw', large, at('large.raw'));
    const content = readFileSync(at('large.raw'));
    expect(content.subarray(0, 70 << 10).every((byte) => byte === 0x55)).toBe(true);
    expect(content.subarray(70 << 10).every((byte) => byte === 0x44)).toBe(true);
  });

  it('copies everything into an existing target whose backing file is not the one of the source', () => {
    const { source } = overlay('other');
    theirs('create', '-q', '-f', 'qcow2', at('stranger'), '1M');
    io(at('stranger'), 'write -q -P 0x66 0 1M');
    theirs('create', '-q', '-f', 'qcow2', '-b', at('stranger'), '-F', 'qcow2', at('other'));
    ours('convert', '-n', '-O', 'qcow2', source, at('other'));
    same(source, at('other'));
  });

  it('does not make the target out of a source, whatever its name and whether or not it is locked', () => {
    const { source, base } = overlay('self');
    const content = [source, base].map((path) => readFileSync(path));
    for (const [index, file] of [source, base].entries()) {
      const other = at(`self-link${index}`);
      linkSync(file, other);
      for (const args of [[], ['-U']]) {
        const result = qemuImg(['convert', ...args, '-O', 'qcow2', source, other]);
        expect(result).toMatchObject({ status: 1 });
        expect(result.stderr).toContain('Failed to get "write" lock');
      }
    }
    expect([source, base].map((path) => readFileSync(path))).toEqual(content);
  });

  it('does not make an image out of its own backing file', () => {
    const { source, base } = overlay('loop');
    const content = readFileSync(base);
    const other = at('loop-link');
    linkSync(base, other);
    for (const args of [
      ['convert', '-O', 'qcow2', '-B', base, '-F', 'qcow2', at('small'), other],
      ['create', '-f', 'qcow2', '-b', base, '-F', 'qcow2', other],
      ['create', '-f', 'qcow2', '-b', source, '-F', 'qcow2', other],
    ]) {
      expect(qemuImg(args)).toMatchObject({ status: 1 });
      expect(readFileSync(base).equals(content)).toBe(true);
    }
  });
});
