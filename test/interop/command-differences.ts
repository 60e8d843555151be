/** One sequence of command lines through the reference in one folder and through ours in another, and where they part. */
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { ours } from '../golden/harness.js';
import { type RunResult, reference, run } from '../support/reference.js';
import { Sequence, type Step } from './command-sequences.js';

export interface Difference {
  readonly steps: readonly string[];
  readonly what: string;
  readonly ours: string;
  readonly theirs: string;
}

/** Also where things lie in the file; new images only come out alike where the reference's own order is fixed. */
const LAYOUT = process.env.IMGD_RANDOM_COMMANDS_LAYOUT === '1';

const READING = new Set(['info', 'map', 'check', 'measure', 'compare']);

/** Differences that are meant, and why. */
const KNOWN: readonly { readonly command: string; readonly of: RegExp; readonly by: RegExp }[] = [
  // An error, and the reference's exit code says that all went well.
  {
    command: 'convert',
    of: /^exit 0\nqemu-img: Cannot use --target-is-zero/,
    by: /^exit 1\nqemu-img: Cannot use --target-is-zero/,
  },
  // The reference takes a snapshot given by `snapshot.` of the first source alone, and the others as they are now.
  {
    command: 'convert',
    of: /^exit /,
    by: /^exit 1\nqemu-img: No support for concatenating multiple snapshot/,
  },
];

/** What cannot be equal: blocks taken, the time of day, how long it took. */
export function masked(text: string): string {
  return text
    .replace(/^( *disk size: ).*$/gm, '$1*')
    .replace(/("(?:actual-size|date-sec|date-nsec)": )\d+/g, '$1*')
    .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/g, '*')
    .replace(/#block\d+/g, '#block*')
    .replace(/^\d+ bytes .*ops; .*$/gm, '*');
}

export function shown({ status, stdout, stderr }: RunResult): string {
  return masked(`exit ${status}\n${stdout}${stderr}`);
}

/** Names of the folder's files, with what changes when one is written. */
function listed(folder: string): Map<string, string> {
  return new Map(
    readdirSync(folder)
      .sort()
      .map((name) => {
        const { mtimeMs, size, ino } = statSync(join(folder, name));
        return [name, `${mtimeMs} ${size} ${ino}`];
      }),
  );
}

const isQcow2 = (path: string) => readFileSync(path).subarray(0, 4).equals(Buffer.from('QFI\xfb', 'latin1'));

function differing(both: { ours: string; theirs: string }): Omit<Difference, 'steps'> | undefined {
  return both.ours === both.theirs ? undefined : { what: 'output', ...both };
}

export class Comparison {
  readonly #folders: { readonly ours: string; readonly theirs: string };
  #seen = { ours: new Map<string, string>(), theirs: new Map<string, string>() };

  constructor(folder: string) {
    this.#folders = { ours: join(folder, 'ours'), theirs: join(folder, 'theirs') };
    for (const each of Object.values(this.#folders)) {
      rmSync(each, { recursive: true, force: true });
      mkdirSync(each);
    }
  }

  /** The first difference of this seed's sequence. */
  run(seed: number, only?: (step: Step, index: number) => boolean): Difference | undefined {
    const done: string[] = [];
    for (const [index, step] of new Sequence(seed).steps().entries()) {
      if (only?.(step, index) === false) continue;
      done.push(
        [step.program, ...step.args].map((word) => (/[ "{]|^$/.test(word) ? `'${word}'` : word)).join(' '),
      );
      const difference = this.#step(step) ?? this.#files();
      if (difference !== undefined) return { ...difference, steps: done };
    }
    return undefined;
  }

  #step({ program, args }: Step): Omit<Difference, 'steps'> | undefined {
    if (program === 'qemu-io') {
      return differing({ theirs: shown(this.#io('theirs', args)), ours: shown(this.#io('ours', args)) });
    }
    // What only reads is asked about the same files: which blocks a file system leaves as holes is not for us to say.
    const reads = READING.has(args[0]!) && !args.includes('-r');
    const theirs = this.#theirs(reads ? 'ours' : 'theirs', args);
    const done = ours(args, this.#folders.ours);
    const text = { theirs: shown(theirs), ours: shown(done) };
    for (const { command, of, by } of KNOWN) {
      if (command === args[0] && of.test(text.theirs) && by.test(text.ours)) return this.#leftovers();
    }
    return differing(text) ?? (done.status === 0 ? undefined : this.#leftovers());
  }

  /** Where a command fails, the reference leaves behind what it had begun; ours does not. */
  #leftovers(): undefined {
    const kept = new Set(readdirSync(this.#folders.ours));
    for (const name of readdirSync(this.#folders.theirs)) {
      if (!kept.has(name) && !this.#seen.theirs.has(name)) rmSync(join(this.#folders.theirs, name));
    }
  }

  #io(side: 'ours' | 'theirs', args: readonly string[]): RunResult {
    return run(reference.qemuIo!, args, { cwd: this.#folders[side] });
  }

  #theirs(side: 'ours' | 'theirs', args: readonly string[]): RunResult {
    return run('qemu-img', args, { cwd: this.#folders[side] });
  }

  /** Whatever was written must read equal, and be equally sound. */
  #files(): Omit<Difference, 'steps'> | undefined {
    const before = this.#seen;
    this.#seen = { ours: listed(this.#folders.ours), theirs: listed(this.#folders.theirs) };
    const names = {
      ours: [...this.#seen.ours.keys()].join(' '),
      theirs: [...this.#seen.theirs.keys()].join(' '),
    };
    if (names.ours !== names.theirs) return { what: 'files', ...names };
    for (const name of this.#seen.ours.keys()) {
      const untouched = (side: 'ours' | 'theirs') => before[side].get(name) === this.#seen[side].get(name);
      if (untouched('ours') && untouched('theirs')) continue;
      const difference = this.#file(name);
      if (difference !== undefined) return difference;
    }
    return undefined;
  }

  #file(name: string): Omit<Difference, 'steps'> | undefined {
    const [a, b] = [join(this.#folders.ours, name), join(this.#folders.theirs, name)];
    if (statSync(a).size > 2 ** 30 || statSync(b).size > 2 ** 30) return undefined;
    if (!isQcow2(b)) {
      if (readFileSync(a).equals(readFileSync(b))) return undefined;
      return {
        what: `bytes of ${name}`,
        ours: `${statSync(a).size} bytes`,
        theirs: `${statSync(b).size} bytes`,
      };
    }
    // Looking through a very large image takes minutes.
    const { stdout } = this.#theirs('theirs', ['info', '-f', 'qcow2', '--output=json', name]);
    if (Number(/^ {4}"virtual-size": (\d+)/m.exec(stdout)?.[1] ?? 0) > 2 ** 30) return undefined;
    const questions = [
      ['check', '-f', 'qcow2', '--output=json', name],
      ['info', '-f', 'qcow2', '--output=json', name],
      ['map', '-f', 'qcow2', '--output=json', name],
    ];
    for (const question of questions) {
      const both = { ours: this.#theirs('ours', question), theirs: this.#theirs('theirs', question) };
      const [ours, theirs] = [both.ours, both.theirs].map((each) => unplaced(shown(each)));
      if (ours !== theirs) return { what: `${question[0]} of ${name}`, ours: ours!, theirs: theirs! };
      if (question[0] === 'info' && both.ours.status !== 0) return undefined;
    }
    const compared = run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'qcow2', a, b]);
    if (compared.status === 1) return { what: `content of ${name}`, ours: shown(compared), theirs: '' };
    if (LAYOUT && statSync(a).size !== statSync(b).size) {
      return { what: `length of ${name}`, ours: String(statSync(a).size), theirs: String(statSync(b).size) };
    }
    return undefined;
  }
}

/** Without places in the file, unless they are asked for. */
function unplaced(text: string): string {
  if (LAYOUT) return text;
  // A file that ends within its last cluster and one that fills it hold the same.
  return merged(text)
    .replace(/,\n *"fragmented-clusters": \d+/g, '')
    .replace(/("image-end-offset": )\d+/g, '$1*')
    .replace(/("virtual-size": )\d+(,\n *"filename": "[^"]*",\n *"format": "file")/g, '$1*$2');
}

/** A map without offsets, runs that only differ in them or in holes of the file joined. */
function merged(text: string): string {
  const runs: { start: number; length: number; rest: string }[] = [];
  const others = text.replace(
    /^.*?"start": (\d+), "length": (\d+), (.*?)(?:, "offset": \d+)?\}.*\n?/gm,
    (_, start, length, rest) => {
      const shown = String(rest).includes('"data": true')
        ? String(rest).replace(/"zero": true/, '"zero": false')
        : String(rest);
      const last = runs.at(-1);
      if (last !== undefined && last.rest === shown && last.start + last.length === Number(start))
        last.length += Number(length);
      else runs.push({ start: Number(start), length: Number(length), rest: shown });
      return '';
    },
  );
  return others + runs.map(({ start, length, rest }) => `${start}+${length}: ${rest}\n`).join('');
}
