/** The same command line through the reference and through our program, in folders that hold the same files. */
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { expect, it } from 'vitest';
import { type RunResult, run, tempDir } from '../support/reference.js';

const program = resolve(process.env.IMGD_DIST ?? 'dist', 'clients/qemu-img/main.js');

/** Ours: through the daemon at IMGD_GOLDEN_SOCKET where that is set, else in its own process. */
export function ours(args: readonly string[], cwd: string): RunResult {
  return run(process.execPath, [program, ...args], {
    cwd,
    env: { IMGD_SOCKET: process.env.IMGD_GOLDEN_SOCKET ?? '' },
  });
}

export function theirs(args: readonly string[], cwd: string): RunResult {
  // By its bare name, which is what its error texts show then.
  return run('qemu-img', args, { cwd });
}

/** Splits a command line at blanks; `'...'` keeps blanks, and is how an empty word is written. */
export function words(line: string): string[] {
  return [...line.matchAll(/(?:'[^']*'|[^ '])+/g)].map(([word]) => word.replaceAll("'", ''));
}

export interface Golden {
  /** A folder whose files the command lines name; filled by the caller, read by both programs. */
  readonly folder: string;
  /** Both must say and return the same. `change` makes both outputs comparable. */
  same(line: string, change?: (text: string) => string): void;
  /**
   * As `same`, for what writes: each program has a copy of the folder of its own. `after` are further command lines, of the
   * reference, on what each has written: both must have the same outcome.
   */
  sameWriting(line: string, ...after: string[]): void;
  /** Known not to be the same, and why that is so. */
  differs(line: string, reason: string): void;
}

export function golden(): Golden {
  if (!existsSync(program)) throw new Error(`${program} is not there: npm run build, or set IMGD_DIST`);
  const root = tempDir();
  const folder = join(root, 'files');
  mkdirSync(folder);

  const copy = () => {
    const into = mkdtempSync(join(root, 'copy-'));
    for (const name of readdirSync(folder)) cpSync(join(folder, name), join(into, name), { recursive: true });
    return into;
  };
  const comparable = (result: RunResult, change: (text: string) => string) => ({
    ...result,
    stdout: change(result.stdout),
    stderr: change(result.stderr),
  });

  return {
    folder,
    same(line, change = (text) => text) {
      it(`qemu-img ${line}`, () => {
        const args = words(line);
        expect(comparable(ours(args, folder), change)).toEqual(comparable(theirs(args, folder), change));
      });
    },
    sameWriting(line, ...after) {
      it([line, ...after].map((each) => `qemu-img ${each}`).join('; '), () => {
        const [a, b] = [copy(), copy()];
        expect(ours(words(line), a)).toEqual(theirs(words(line), b));
        for (const next of after) expect(theirs(words(next), a)).toEqual(theirs(words(next), b));
        for (const each of [a, b]) rmSync(each, { recursive: true });
      });
    },
    differs(line, reason) {
      it(`qemu-img ${line} (differs: ${reason})`, () => {
        const [a, b] = [copy(), copy()];
        expect(ours(words(line), a)).not.toEqual(theirs(words(line), b));
        for (const each of [a, b]) rmSync(each, { recursive: true });
      });
    },
  };
}
