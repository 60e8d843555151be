/** Runs a random sequence with both programs, each in its own folder, and tells every difference. */
import { mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { bochs } from '../conformance/formats/bochs.js';
import { cloop } from '../conformance/formats/cloop.js';
import { dmg } from '../conformance/formats/dmg.js';
import { runHere } from '../conformance/in-process.js';
import { type RunResult, reference, run } from '../support/reference.js';
import { type Image, Sequence, type Step } from './random-formats.js';

/** What differs from run to run, and disk sizes (how far a file is a hole is the file system's business). */
function masked({ status, stdout, stderr }: RunResult, isSame: boolean): RunResult {
  const named = (text: string) =>
    text.replace(/#block\d+/g, '#block').replace(/( {4}\(\d+\.\d\d\/100%\)\r?)+\n?/g, '(progress)');
  const mask = (text: string) =>
    isSame
      ? named(text)
      : named(text)
          .replace(/^( *)disk size: .*$/gm, '$1disk size: X')
          .replace(/^( *)file length: .*$/gm, '$1file length: X')
          .replace(/"actual-size": \d+/g, '"actual-size": 0')
          .replace(/[\d.]+% fragmented/, 'X% fragmented')
          .replace(/^( *)(parent )?cid: \d+$/gm, '$1$2cid: X')
          .replace(/"(parent-)?cid": \d+/g, '"$1cid": 0');
  return { status, stdout: mask(stdout), stderr: mask(stderr) };
}

const shown = ({ status, stdout, stderr }: RunResult) => `${status}\n${stdout}${stderr}`;

export const FIXTURES: readonly (Image & { readonly file: Uint8Array })[] = [bochs, cloop, dmg].flatMap(
  ({ format, samples }) =>
    (samples ?? []).map((sample, i) => {
      const { file, guest } = sample.make();
      return { name: `fixture${i}.${format}`, format, size: guest.length, file: file as Uint8Array };
    }),
);

export class Duel {
  readonly #folder: string;
  readonly #log: string[] = [];
  readonly differences: string[] = [];
  #ours = 'ours';
  #theirs = 'theirs';
  #over = false;

  constructor(folder: string) {
    this.#folder = folder;
  }

  get log(): string {
    return this.#log.join('\n');
  }

  #path(side: string): string {
    return join(this.#folder, side);
  }

  #reference(args: readonly string[], side: string): RunResult {
    return run(reference.qemuImg!, args, { cwd: this.#path(side), argv0: 'qemu-img' });
  }

  async #us(args: readonly string[], side: string): Promise<RunResult> {
    process.env.IMGD_SOCKET = '';
    return await runHere(args, this.#path(side));
  }

  #expect(what: string, expected: RunResult, actual: RunResult, isSame: boolean): boolean {
    // We check formats that the reference cannot check.
    if (expected.status === 63 && actual.status === 0 && /\bcheck\b/.test(what)) return true;
    // Some lines end the reference by an assertion.
    if (expected.status === null) return true;
    const [one, other] = [shown(masked(expected, isSame)), shown(masked(actual, isSame))];
    if (one === other) return true;
    this.differences.push(`${what}\n--- reference ${one}\n--- ours ${other}`);
    return false;
  }

  async run(seed: number): Promise<void> {
    for (const side of ['ours', 'theirs']) {
      mkdirSync(this.#path(side), { recursive: true });
      for (const { name, file } of FIXTURES) writeFileSync(join(this.#path(side), name), file);
    }
    const sequence = new Sequence(seed, FIXTURES);
    for (const step of sequence.steps) {
      await this.#step(step, sequence.images);
      if (this.#over || this.differences.length > 0) return;
    }
    await this.#end(sequence.images);
  }

  remove(): void {
    rmSync(this.#folder, { recursive: true, force: true });
  }

  async #step(step: Step, images: readonly Image[]): Promise<void> {
    if (step.kind === 'swap') {
      [this.#ours, this.#theirs] = [this.#theirs, this.#ours];
      this.#log.push('swap');
      return;
    }
    if (step.kind === 'io') {
      this.#log.push(`qemu-io ${step.args.join(' ')} <<< '${step.input.trimEnd().replaceAll('\n', '; ')}'`);
      const [one, other] = [this.#theirs, this.#ours].map((side) =>
        run(reference.qemuIo!, step.args, { cwd: this.#path(side), input: step.input }),
      );
      const bare = (result: RunResult) => ({
        ...result,
        stdout: result.stdout.replace(/^.*(ops; |qemu-io> $).*$/gm, ''),
      });
      this.#expect('qemu-io', bare(one!), bare(other!), false);
      return;
    }
    const shownLine = step.args.map((arg) => (/[\s"'{}]|^$/.test(arg) ? `'${arg}'` : arg)).join(' ');
    this.#log.push(`qemu-img ${shownLine}`);
    if (step.reads) {
      for (const side of [this.#theirs, this.#ours]) {
        const expected = this.#reference(step.args, side);
        this.#expect(
          `in ${side === this.#theirs ? 'theirs' : 'ours'}: ${shownLine}`,
          expected,
          await this.#us(step.args, side),
          true,
        );
      }
      return;
    }
    const expected = this.#reference(step.args, this.#theirs);
    const actual = await this.#us(step.args, this.#ours);
    if (expected.status === 0 && actual.status !== 0 && /\d{16}|[1478][PE]/.test(shownLine)) {
      // Sizes beyond 2^53 are refused: what is left of the sequence is about an image that is not there.
      this.#over = true;
      return;
    }
    this.#expect('', expected, actual, false);
    if (actual.status !== 0) this.#dropLeftovers();
    this.#closeParallels(images);
    // What was refused may have been refused before or after some of the work.
    if (expected.status === 0) this.#files();
    if (step.makes !== undefined && expected.status === 0) {
      const made = images.find(({ name }) => name === step.makes);
      if (made !== undefined) this.#read(made);
    }
  }

  #list(side: string): string {
    const files = readdirSync(this.#path(side))
      .filter((name) => !name.startsWith('fixture'))
      .sort();
    const size = (name: string) => Math.ceil(statSync(join(this.#path(side), name)).size / 512) * 512;
    // Which blocks of a fixed vhdx are there from the start differs; qcow2 has tests of its own.
    const isFree = (name: string) => /\.(vhdx|qcow2)$/.test(name);
    return files.map((name) => `${name} ${isFree(name) ? '' : size(name)}`).join('\n');
  }

  /** Where it refuses something the reference leaves parallels images marked as open: it mends that when it opens them again. */
  #closeParallels(images: readonly Image[]): void {
    for (const { name, format } of images) {
      if (format !== 'parallels') continue;
      for (const side of ['ours', 'theirs']) {
        run(reference.qemuIo!, ['-f', format, '-c', 'flush', name], { cwd: this.#path(side) });
      }
    }
  }

  /** An image that could not be made is removed by us; the reference leaves what it has. */
  #dropLeftovers(): void {
    const ours = new Set(readdirSync(this.#path(this.#ours)));
    for (const name of readdirSync(this.#path(this.#theirs))) {
      if (!ours.has(name)) rmSync(join(this.#path(this.#theirs), name));
    }
  }

  #files(): void {
    const [one, other] = [this.#list(this.#theirs), this.#list(this.#ours)];
    if (one !== other) this.differences.push(`SIZES files\n--- reference\n${one}\n--- ours\n${other}`);
  }

  /** Both images read the same by the reference. */
  #read({ name, format }: Image): void {
    const pair = [this.#theirs, this.#ours].map((side) => join(side, name));
    const compared = run(reference.qemuImg!, ['compare', '-f', format, '-F', format, ...pair], {
      cwd: this.#folder,
    });
    if (compared.status === 0) return;
    // Refused alike, perhaps.
    const info = ['info', '-f', format, name];
    const [one, other] = [this.#reference(info, this.#theirs), this.#reference(info, this.#ours)];
    if (one.status !== 0 && one.status === other.status) return;
    this.differences.push(`compare ${name}: ${shown(compared)}`);
  }

  async #end(images: readonly Image[]): Promise<void> {
    this.#log.push('(at the end)');
    for (const image of new Map(images.map((image) => [image.name, image])).values()) {
      this.#read(image);
      for (const args of [
        ['check', '-f', image.format, image.name],
        ['info', '-f', image.format, image.name],
        ['map', '--output=json', '-f', image.format, image.name],
      ]) {
        const [here, there] = [this.#reference(args, this.#ours), this.#reference(args, this.#theirs)];
        // Where clusters are is each program's own business.
        if (args[0] !== 'map') {
          this.#expect(`reference, of both images: ${args.join(' ')}`, there, here, false);
        }
        for (const [side, expected] of [
          [this.#ours, here],
          [this.#theirs, there],
        ] as const) {
          this.#expect(args.join(' '), expected, await this.#us(args, side), true);
        }
      }
    }
  }
}
