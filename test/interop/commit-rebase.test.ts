/**
 * commit and rebase on random chains made by the reference: what we leave reads as it did, is sound for the reference's check,
 * and is the same that the reference leaves.
 */
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { it } from 'vitest';
import { runOperation } from '../../src/engine/index.js';
import { quietContext } from '../support/operations.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';

const K = 1024;

/** A small generator with a seed, so that a failure can be looked at again. */
function randomness(seed: number): (below: number) => number {
  let state = seed * 2654435761 + 1;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

const LAYERS = [
  '-f qcow2',
  '-f qcow2 -o cluster_size=4k',
  '-f qcow2 -o cluster_size=512',
  '-f qcow2 -o compat=0.10',
  '-f qcow2 -o extended_l2=on,cluster_size=16k',
  '-f qcow2 -o compression_type=zstd,cluster_size=256k',
];

describeInterop('random chains', () => {
  const root = tempDir();
  let step = 0;
  const path = (name: string) => join(root, `${step}-${name}`);
  const call = (program: string, args: readonly string[]) => {
    const { status, stdout, stderr } = run(program, args, { cwd: root });
    if (status !== 0) throw new Error(`${program} ${args.join(' ')}: ${stdout}${stderr}`);
    return stdout;
  };
  const img = (line: string, ...more: string[]) => call(reference.qemuImg!, [...line.split(' '), ...more]);
  const ours = async (name: 'image-commit' | 'image-rebase', params: object) => {
    const result = await runOperation(name, { cwd: root, ...params }, quietContext({ cwd: root }));
    if (result.isErr()) throw result.error;
  };

  function fill(image: string, size: number, random: (below: number) => number): void {
    const commands: string[] = [];
    for (let i = 0; i < 8; i++) {
      const at = random(size / 512) * 512;
      const length = Math.min(size - at, (1 + random(200)) * 512);
      const kinds = [`write -P ${1 + random(200)}`, `write -P ${1 + random(200)}`, 'write -z', 'write -P 0'];
      commands.push('-c', `${kinds[random(kinds.length)]} ${at} ${length}`);
    }
    call(reference.qemuIo!, [...commands, image]);
  }

  /** Four layers; their sizes and kinds vary. Returns their paths, bottom first. */
  function chain(random: (below: number) => number): string[] {
    const made: string[] = [];
    for (const [depth, name] of ['a', 'b', 'c', 'd'].entries()) {
      const raw = depth === 0 && random(3) === 0;
      const size = (1 + random(16)) * 64 * K + random(8) * 512;
      const file = path(name);
      const backing = made.at(-1);
      const kind = raw ? '-f raw' : LAYERS[random(LAYERS.length)]!;
      const below =
        backing === undefined ? [] : ['-b', backing, '-F', depth === 1 && rawBase ? 'raw' : 'qcow2'];
      img(`create -q ${kind}`, ...below, file, String(size));
      if (depth === 0) rawBase = raw;
      if (raw) call(reference.qemuIo!, ['-f', 'raw', '-c', `write -P 9 0 ${Math.min(size, 64 * K)}`, file]);
      else fill(file, size, random);
      made.push(file);
    }
    return made;
  }
  let rawBase = false;

  /** The same chain again, under other names. */
  function again(files: readonly string[]): string[] {
    const copies = files.map((file) => `${file}.2`);
    for (const [i, file] of files.entries()) copyFileSync(file, copies[i]!);
    for (let i = 1; i < files.length; i++) {
      img('rebase -u', '-b', copies[i - 1]!, '-F', i === 1 && rawBase ? 'raw' : 'qcow2', copies[i]!);
    }
    return copies;
  }

  for (let seed = 1; seed <= 8; seed++) {
    it(`seed ${seed}`, async () => {
      const random = randomness(seed);
      for (const what of [
        'commit',
        'commit-deep',
        'rebase-down',
        'rebase-none',
        'rebase-pack',
        'rebase-other',
      ]) {
        step += 1;
        const mine = chain(random);
        const theirs = again(mine);
        const whole = path('whole');
        img('convert -O qcow2', mine.at(-1)!, whole);
        const [a, , , d] = mine as [string, string, string, string];
        const [a2, , , d2] = theirs as [string, string, string, string];
        const bottom = rawBase ? 'raw' : 'qcow2';
        let changed = [d];
        if (what === 'commit') {
          await ours('image-commit', { image: { filename: d } });
          img('commit -q', d2);
          img('compare -f qcow2 -F qcow2', mine[2]!, theirs[2]!);
          changed = [d, mine[2]!];
        } else if (what === 'commit-deep') {
          await ours('image-commit', { image: { filename: d }, base: a });
          img('commit -q', '-b', a2, d2);
          img(`compare -f ${bottom} -F ${bottom}`, a, a2);
          if (!rawBase) changed = [d, a];
        } else if (what === 'rebase-down') {
          await ours('image-rebase', { image: { filename: d }, backing: a, 'backing-format': bottom });
          img('rebase', '-b', a2, '-F', bottom, d2);
        } else if (what === 'rebase-none' || what === 'rebase-pack') {
          await ours('image-rebase', {
            image: { filename: d },
            backing: '',
            compress: what === 'rebase-pack',
          });
        } else {
          const other = path('other');
          img('create -q -f qcow2', other, String((1 + random(20)) * 64 * K));
          await ours('image-rebase', { image: { filename: d }, backing: other, 'backing-format': 'qcow2' });
        }
        if (!what.startsWith('commit') || what === 'commit') img('compare -f qcow2 -F qcow2', d, whole);
        for (const file of changed) img('check -q -f qcow2', file);
      }
    }, 120_000);
  }
});
