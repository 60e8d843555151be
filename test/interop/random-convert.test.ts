/** Random conversions (chains, cluster sizes, -B, -n, -c, -S, several sources), ours against the reference's own. */
import { copyFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { qemuImg } from '../support/client.js';
import { describeInterop, type RunResult, reference, run, tempDir } from '../support/reference.js';
import { generator } from '../support/stamped.js';

const KiB = 1024;
const MiB = 1024 * KiB;
/** More of them: IMGD_RANDOM_CONVERT=400; others: IMGD_RANDOM_CONVERT_SEED=1000. */
const CASES = Number(process.env.IMGD_RANDOM_CONVERT ?? 24);
const FIRST_SEED = Number(process.env.IMGD_RANDOM_CONVERT_SEED ?? 1);

const folder = tempDir();
const inFolder = { cwd: folder };
const tryTheirs = (args: readonly string[]) => run(reference.qemuImg!, args, inFolder);
const theirs = (...args: string[]) => good(tryTheirs(args));

function good(result: RunResult): RunResult {
  expect(result, result.stderr).toMatchObject({ status: 0 });
  return result;
}

interface Layer {
  readonly name: string;
  readonly format: string;
}

interface Source extends Layer {
  readonly base: Layer | undefined;
  readonly size: number;
}

interface Target {
  readonly format: string;
  readonly layout: readonly string[];
  readonly size: number;
}

/** One random case, all from its seed. */
class Case {
  readonly #random: () => number;
  readonly #files: string[] = [];
  readonly sources: Source[];
  readonly args: string[];
  /** The target is there already: `ours`, `theirs` and `before` are equal. */
  existing = false;
  readonly compressed: boolean;
  readonly format: string;

  constructor(seed: number) {
    this.#random = generator(seed * 7919);
    const size = this.#pick(1, 3, 5, 9) * MiB + (this.#chance(0.6) ? this.#below(4096) * 512 : 0);
    this.sources = [this.#chain('first', size)];
    if (this.#chance(0.25)) this.sources.push(this.#chain('second', MiB + this.#below(3000) * 512));
    this.format = this.#chance(0.8) ? 'qcow2' : 'raw';
    this.compressed = this.format === 'qcow2' && this.#chance(0.35);
    this.args = ['-O', this.format, ...this.#flags()];
    this.#target();
  }

  #chance(part: number): boolean {
    return this.#random() < part;
  }

  #below(limit: number): number {
    return Math.floor(this.#random() * limit);
  }

  #pick<T>(...values: readonly T[]): T {
    return values[this.#below(values.length)]!;
  }

  #layout(): string[] {
    if (this.#chance(0.2)) {
      return ['-o', `extended_l2=on,cluster_size=${this.#pick('16k', '64k', '128k', '2M')}`];
    }
    const compat = this.#chance(0.2) ? 'compat=0.10,' : '';
    return ['-o', `${compat}cluster_size=${this.#pick('512', '4k', '4k', '64k', '64k', '128k', '2M')}`];
  }

  /** Random writes, zeros and discards. */
  #scribble({ name, format }: Layer, size: number, count: number): void {
    const commands: string[] = [];
    for (let i = 0; i < count; i++) {
      const grain = this.#pick(512, 512, 4096, 65536);
      const start = Math.floor(this.#below(size) / grain) * grain;
      const length = Math.min(size - start, Math.ceil((1 + this.#random() ** 4 * 800 * KiB) / grain) * grain);
      const what = this.#random();
      if (what < 0.6) commands.push(`write -q -P ${1 + this.#below(250)} ${start} ${length}`);
      else if (what < 0.75) commands.push(`write -q -P 0 ${start} ${length}`);
      else if (what < 0.9) commands.push(`write -q -z ${this.#chance(0.5) ? '-u ' : ''}${start} ${length}`);
      else commands.push(`discard -q ${start} ${length}`);
    }
    run(reference.qemuIo!, ['-f', format, name], { ...inFolder, input: `${commands.join('\n')}\n` });
  }

  #make(layer: Layer, size: number, layout: readonly string[], below: Layer | undefined): void {
    const backing = below === undefined ? [] : ['-b', below.name, '-F', below.format];
    theirs('create', '-q', '-f', layer.format, ...layout, ...backing, layer.name, String(size));
    this.#files.push(layer.name);
  }

  /** One to three layers of different lengths and layouts. */
  #chain(name: string, size: number): Source {
    const count = 1 + this.#below(3);
    let below: Layer | undefined;
    for (let depth = count - 1; depth >= 0; depth--) {
      const own = depth === 0 ? size : Math.max(512, Math.floor((size * (0.5 + this.#random())) / 512) * 512);
      const isRaw = below === undefined && this.#chance(0.4);
      const layer: Layer = { name: `${name}${depth}`, format: isRaw ? 'raw' : 'qcow2' };
      this.#make(layer, own, isRaw ? [] : this.#layout(), below);
      this.#scribble(layer, own, this.#below(25) + (below === undefined ? 10 : 0));
      if (depth === 0) return { ...layer, base: below, size };
      below = layer;
    }
    throw new Error('a chain has a layer');
  }

  #flags(): string[] {
    const flags: string[] = [];
    if (this.#chance(0.15)) flags.push('-S', '0');
    else if (this.#chance(0.4)) flags.push('-S', this.#pick('512', '4k', '8k', '12k', '64k', '1M'));
    if (this.#chance(0.3)) flags.push('-W');
    if (this.#chance(0.5)) flags.push('-m', this.#pick('1', '2', '8', '16'));
    if (this.compressed) flags.push('-c');
    return flags;
  }

  #target(): void {
    const isQcow2 = this.format === 'qcow2';
    const layout = isQcow2 ? this.#layout() : [];
    const total = this.sources.reduce((sum, { size }) => sum + size, 0);
    const [source] = this.sources;
    const target: Target = { format: this.format, layout, size: total };
    if (isQcow2 && this.sources.length === 1 && source!.base !== undefined && this.#chance(0.5)) {
      this.args.push('-B', source!.base.name, '-F', source!.base.format);
      if (this.#chance(0.35)) this.#exists(target, source!.base, 0);
      else this.args.push(...layout);
    } else if (this.#chance(0.45)) {
      let below: Layer | undefined;
      if (isQcow2 && this.#chance(0.4)) {
        below = { name: 'below', format: 'raw' };
        const size = Math.floor((total * (0.3 + this.#random())) / 512) * 512;
        this.#make(below, size, [], undefined);
        this.#scribble(below, size, 15);
      }
      const extra = this.#chance(0.4) ? this.#below(3000) * 512 : 0;
      this.#exists({ ...target, size: total + extra }, below, 20);
    } else this.args.push(...layout);
  }

  #exists({ format, layout, size }: Target, below: Layer | undefined, writes: number): void {
    this.existing = true;
    this.args.push('-n');
    const layer = { name: 'before', format };
    this.#make(layer, size, layout, below);
    this.#scribble(layer, size, writes);
    for (const copy of ['ours', 'theirs']) copyFileSync(join(folder, 'before'), join(folder, copy));
  }

  command(target: string): string[] {
    const first = this.sources.length === 1 ? ['-f', this.sources[0]!.format] : [];
    return ['convert', ...first, ...this.args, ...this.sources.map(({ name }) => name), target];
  }

  remove(): void {
    for (const name of [...this.#files, 'ours', 'theirs']) rmSync(join(folder, name), { force: true });
  }
}

describeInterop('random conversions', () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + CASES; seed++) {
    it(`seed ${seed}`, () => {
      const one = new Case(seed);
      try {
        const shown = one.command('ours').join(' ');
        expect(qemuImg(one.command('ours'), inFolder), shown).toMatchObject({ status: 0, stderr: '' });
        let expected = tryTheirs(one.command('theirs'));
        if (expected.status !== 0 && one.existing && one.compressed) {
          // It does not write compressed over what is there: what would be right is what it does without.
          copyFileSync(join(folder, 'before'), join(folder, 'theirs'));
          expected = tryTheirs(one.command('theirs').filter((arg) => arg !== '-c'));
        }
        good(expected);
        const compared = tryTheirs(['compare', '-f', one.format, '-F', one.format, 'ours', 'theirs']);
        expect(compared.stdout, shown).toBe('Images are identical.\n');
        if (one.format === 'qcow2')
          expect(tryTheirs(['check', '-q', 'ours']), shown).toMatchObject({ status: 0 });
      } finally {
        one.remove();
      }
    });
  }
});
