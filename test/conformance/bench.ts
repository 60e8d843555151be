/** What a cell works with: one format, option string and size, images of it by both programs, and the comparing. */
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { RunResult } from '../support/reference.js';
import { SECTOR, writeStamped } from '../support/stamped.js';
import type { FormatCase } from './case.js';
import { comparableInfo, crashed, differs, type Program, theirs } from './programs.js';

export type Sample = NonNullable<FormatCase['samples']>[number];

/** Two folders that hold the same: theirs and ours. */
export type Pair = readonly [string, string];

/** Who did what was asked. */
export interface Done {
  readonly theirs: boolean;
  readonly both: boolean;
}

export interface Setup {
  readonly format: FormatCase;
  /** For `-o`, or the sample that is looked at. */
  readonly option: string | Sample;
  /** Guest bytes, where there is an option string. */
  readonly size: number;
  /** Empty; the caller removes it. */
  readonly folder: string;
  readonly ours: Program;
  /** Also what does not depend on the guest's size: done for the first of several sizes. */
  readonly thorough: boolean;
}

export class Bench {
  readonly name: string;
  /** The image's name in its folder: some formats are told by it. */
  readonly image: string;
  /** `-o OPTION`, or nothing. */
  readonly options: readonly string[];
  readonly size: number;
  readonly guest: Uint8Array;
  /** What the cell that runs has found. */
  found: string[] = [];
  /** Where the reference refuses, ours may say what it likes. */
  more = false;
  private copies = 0;
  private reference: Promise<string | undefined> | undefined;
  private own: Promise<string | undefined> | undefined;

  constructor(readonly setup: Setup) {
    const { format, option, folder } = setup;
    this.name = format.format;
    this.image = `image.${this.name}`;
    this.options = typeof option === 'string' && option !== '' ? ['-o', option] : [];
    if (typeof option === 'string') {
      this.size = setup.size;
      this.guest = stampedFile(join(folder, 'source.raw'), this.size, 1);
    } else {
      const { file, guest, others } = option.make();
      this.size = guest.byteLength;
      this.guest = guest;
      writeFileSync(join(folder, 'source.raw'), guest);
      const into = this.folder();
      writeFileSync(join(into, this.image), file);
      for (const [name, bytes] of Object.entries(others ?? {})) writeFileSync(join(into, name), bytes);
      this.reference = Promise.resolve(into);
      this.own = Promise.resolve(undefined);
    }
    stampedFile(join(folder, 'other.raw'), this.size, 2);
    stampedFile(join(folder, 'short.raw'), Math.ceil(this.size / 2 / SECTOR) * SECTOR, 3);
  }

  note(text: string): void {
    this.found.push(text);
  }

  /** A new folder, with a copy of what is in another. */
  folder(from?: string): string {
    const path = join(this.setup.folder, String(this.copies++));
    mkdirSync(path);
    if (from !== undefined) cpSync(from, path, { recursive: true });
    return path;
  }

  pair(from?: string): Pair {
    return [this.folder(from), this.folder(from)];
  }

  /** A folder with an image of the stamped data by the reference (or the sample); undefined where it makes none. */
  byReference(): Promise<string | undefined> {
    this.reference ??= this.made(theirs);
    return this.reference;
  }

  /** As `byReference`, by us. */
  byOurs(): Promise<string | undefined> {
    this.own ??= this.made(this.setup.ours);
    return this.own;
  }

  private async made(program: Program): Promise<string | undefined> {
    const folder = this.folder();
    const { status } = await program(this.converting(), folder);
    return status === 0 ? folder : undefined;
  }

  /** The command line that makes the image of the stamped data. */
  converting(...more: readonly string[]): string[] {
    return ['convert', '-f', 'raw', '-O', this.name, ...this.options, ...more, '../source.raw', this.image];
  }

  /** The folders of the images that there are, by whom they were made. */
  async images(): Promise<[string, string][]> {
    const images: [string, string | undefined][] = [
      ['image by the reference', await this.byReference()],
      ['image by ours', await this.byOurs()],
    ];
    return images.filter((each): each is [string, string] => each[1] !== undefined);
  }

  /** Both programs, each in its folder; differences are noted. */
  async both(args: readonly string[], [a, b]: Pair, what = ''): Promise<Done> {
    const reference = await theirs(args, a);
    const own = await this.setup.ours(args, b);
    this.compare(args, reference, own, what);
    return { theirs: reference.status === 0, both: reference.status === 0 && own.status === 0 };
  }

  /** Both programs on the same files, which neither changes. */
  async onSame(args: readonly string[], folder: string, what = ''): Promise<RunResult> {
    const run = async () => [await theirs(args, folder), await this.setup.ours(args, folder)] as const;
    let [reference, own] = await run();
    // The host may have moved a new file's blocks to their place in between.
    for (let again = 0; again < 2 && differs(reference, own) !== undefined; again++)
      [reference, own] = await run();
    this.compare(args, reference, own, what);
    return reference;
  }

  private compare(args: readonly string[], reference: RunResult, own: RunResult, what: string): void {
    const difference = differs(reference, own);
    if (difference === undefined || crashed(reference)) return;
    if (this.more && reference.status !== 0 && !own.stderr.includes('internal error')) return;
    this.note(`${what === '' ? '' : `${what}: `}${args.join(' ')}: ${difference}`);
  }

  /** The reference says the same of what is in both folders. */
  async alike(args: readonly string[], [a, b]: Pair, what: string): Promise<RunResult> {
    const [onTheirs, onOurs] = [await theirs(args, a), await theirs(args, b)];
    const difference = differs(onTheirs, onOurs);
    if (difference !== undefined) {
      this.note(
        `${what}: the reference's ${args.join(' ')}: ${difference.replace('theirs', 'on theirs').replace('ours', 'on ours')}`,
      );
    }
    return onTheirs;
  }

  /** The reference's information on both images is the same, and its check of both. */
  async sameState(pair: Pair, image: string, what: string, layout: 'same' | 'any' = 'any'): Promise<void> {
    const args = ['info', '--output=json', '-f', this.name, image];
    const [a, b] = [await theirs(args, pair[0]), await theirs(args, pair[1])];
    const [first, second] = [comparableInfo(a.stdout, layout), comparableInfo(b.stdout, layout)];
    if (a.stderr !== b.stderr) this.note(`${what}: info of both: ${differs(a, b)}`);
    else if (!isDeepStrictEqual(first, second)) {
      const show = (value: unknown) => JSON.stringify(value, null, 1);
      this.note(
        `${what}: info of both: ${differs({ ...a, stdout: show(first) }, { ...b, stdout: show(second) })}`,
      );
    }
    const check = ['check', '-f', this.name, image];
    const own = await theirs(check, pair[1]);
    if (own.status === 0 || own.status === 63) return;
    const checked = await theirs(check, pair[0]);
    if (differs(checked, own) !== undefined) this.note(`${what}: check of both: ${differs(checked, own)}`);
  }

  /** Guest bytes, as the reference finds them. */
  async sizeOf(folder: string): Promise<number> {
    const { stdout } = await theirs(['info', '--output=json', '-f', this.name, this.image], folder);
    return Number(JSON.parse(stdout)['virtual-size']);
  }

  /** What the reference reads from ours is `expected`, with zeros behind; or what it reads from theirs. */
  async sameContent(pair: Pair, image: string, what: string, expected?: Uint8Array): Promise<void> {
    const own = await this.back(pair[1], image);
    if (expected !== undefined && typeof own !== 'string' && startsWith(own, expected)) return;
    const reference = await this.back(pair[0], image);
    if (typeof own === 'string') {
      if (own !== reference) this.note(`${what}: the reference does not read ours: ${own}`);
    } else if (typeof reference !== 'string')
      this.sameBytes(reference, own, `${what}: content of theirs and of ours`);
  }

  /** The guest's bytes as the reference reads them, or its error. */
  private async back(folder: string, image: string): Promise<Uint8Array | string> {
    const back = join(this.setup.folder, 'back.raw');
    const { status, stderr } = await theirs(['convert', '-f', this.name, '-O', 'raw', image, back], folder);
    const content = status === 0 ? readFileSync(back) : stderr.trim();
    rmSync(back, { force: true });
    return content;
  }

  sameBytes(a: Uint8Array, b: Uint8Array, what: string): boolean {
    if (Buffer.compare(a, b) === 0) return true;
    if (a.byteLength !== b.byteLength) {
      this.note(`${what}: ${a.byteLength} bytes, ${b.byteLength} bytes`);
      return false;
    }
    const at = a.findIndex((byte, i) => byte !== b[i]);
    this.note(`${what}: differ from sector ${Math.floor(at / SECTOR)}`);
    return false;
  }

  /** `content` begins with `expected`, zeros follow: sizes are rounded up by some formats. */
  holds(content: Uint8Array, expected: Uint8Array, what: string): void {
    if (startsWith(content, expected)) return;
    const same = this.sameBytes(
      expected,
      content.subarray(0, expected.byteLength),
      `${what}: what was written and what is read`,
    );
    if (same) this.note(`${what}: no zeros behind what was written`);
  }

  /** Both folders hold files of the same names; ours takes no more space than theirs and some metadata. */
  sameFiles([a, b]: Pair, what: string): void {
    const [names, own] = [readdirSync(a).sort(), readdirSync(b).sort()];
    if (!isDeepStrictEqual(names, own)) this.note(`${what}: files ${names} and ${own}`);
    for (const name of names) {
      if (!existsSync(join(b, name))) continue;
      const [first, second] = [statSync(join(a, name)), statSync(join(b, name))];
      // Ours uses freed places again only once the disk says that they are free.
      if (second.size > first.size * 1.75 + 256 * 1024)
        this.note(`${what}: ${name} has ${first.size} bytes, ours ${second.size}`);
      // Two blocks of the coarsest format: units that are written whole.
      if (second.blocks * 512 > first.blocks * 512 * 1.5 + 2 * 1024 * 1024)
        this.note(`${what}: ${name} takes ${first.blocks} blocks, ours ${second.blocks}`);
    }
  }

  read(name: string): Uint8Array {
    return readFileSync(join(this.setup.folder, name));
  }
}

/** Stamped sectors and holes; the last sector may be cut short. Gives the content. */
function stampedFile(path: string, size: number, seed: number): Uint8Array {
  const content = writeStamped(path, Math.ceil(size / SECTOR) * SECTOR, seed);
  truncateSync(path, size);
  return content.subarray(0, size);
}

/** Zeros follow. */
function startsWith(content: Uint8Array, expected: Uint8Array): boolean {
  const { byteLength } = expected;
  if (content.byteLength < byteLength || Buffer.compare(content.subarray(0, byteLength), expected) !== 0)
    return false;
  return content.subarray(byteLength).every((byte) => byte === 0);
}
