/** The two programs that are compared, and what of their outputs need not be the same. */
import { type ChildProcess, fork, spawn } from 'node:child_process';
import { join } from 'node:path';
import type { RunResult } from '../support/reference.js';

/** Runs one command line, without the program's name, in a folder. */
export type Program = (args: readonly string[], cwd: string) => Promise<RunResult>;

/** No command of the suite takes a second where it works. */
const TIMEOUT = 60_000;
const LONGEST = 64 * 2 ** 20;

function start(program: string): Program {
  return (args, cwd) =>
    new Promise((resolve, reject) => {
      const child = spawn(program, args, {
        cwd,
        env: { ...process.env, LC_ALL: 'C' },
        stdio: ['ignore', 'pipe', 'pipe'],
        timeout: TIMEOUT,
        killSignal: 'SIGKILL',
      });
      const text = { stdout: '', stderr: '' };
      for (const name of ['stdout', 'stderr'] as const) {
        child[name].setEncoding('utf8');
        child[name].on('data', (part: string) => {
          text[name] += part;
          if (text[name].length > LONGEST) child.kill('SIGKILL');
        });
      }
      child.on('error', reject);
      child.on('close', (status, signal) => {
        if (signal !== null) text.stderr += `(ended by ${signal})\n`;
        resolve({ status, ...text });
      });
    });
}

/** The reference, by its bare name, which is what its error texts show then. */
export const theirs: Program = start('qemu-img');

export const theirIo: Program = start('qemu-io');

/** Our program, in a process that stays: starting one for each command would take most of the time. */
export function ourHost(): Program & { end(): void } {
  let host: ChildProcess | undefined;
  const run: Program = (args, cwd) => {
    if (host?.connected !== true) {
      const env = { ...process.env, LC_ALL: 'C', IMGD_SOCKET: '' };
      host = fork(join(import.meta.dirname, 'host.js'), { env });
      // A channel that closes shows as the end of the process.
      host.on('error', () => {});
    }
    const child = host;
    return new Promise((resolve) => {
      const done = (result: RunResult) => {
        clearTimeout(timer);
        child.removeAllListeners('message').removeAllListeners('exit');
        resolve(result);
      };
      const lost = (why: string) => {
        host = undefined;
        child.kill('SIGKILL');
        done({ status: null, stdout: '', stderr: `(${why})\n` });
      };
      const timer = setTimeout(() => lost('no answer in time'), TIMEOUT);
      child.on('message', (result) => done(result as RunResult));
      child.on('exit', (code, signal) => lost(`ended: ${code ?? signal}`));
      child.send({ args, cwd });
    });
  };
  return Object.assign(run, { end: () => host?.kill() });
}

const CHANGING = new Set(['actual-size', 'cid', 'parent-cid', 'date-sec', 'date-nsec', 'vm-clock-nsec']);

/**
 * Information on two images that were made alike by different programs: without host space, dates and random numbers.
 * `layout`: also without what depends on where things are in the file.
 */
export function comparableInfo(json: string, layout: 'same' | 'any'): unknown {
  let parsed: unknown;
  try {
    parsed = JSON.parse(json);
  } catch {
    return json;
  }
  const clean = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(clean);
    if (typeof value !== 'object' || value === null) return value;
    return Object.fromEntries(
      Object.entries(value)
        .filter(([key]) => !CHANGING.has(key) && !(layout === 'any' && key === 'children'))
        .map(([key, each]) => [key, clean(each)]),
    );
  };
  return clean(parsed);
}

/** Where two texts part, short enough for a table's notes. */
export function firstDifference(a: string, b: string): string {
  const [as, bs] = [a.split('\n'), b.split('\n')];
  const at = as.findIndex((line, i) => line !== bs[i]);
  const line = at < 0 ? as.length : at;
  const show = (text: string | undefined) =>
    text === undefined ? 'no more' : `"${text.trim().slice(0, 300)}"`;
  return `line ${line + 1}: theirs ${show(as[line])}, ours ${show(bs[line])}`;
}

/** Requests that run at once fail at once, and a line may be there once for each. */
function outcome({ status, stderr, stdout }: RunResult): string {
  const once = stderr.split('\n').filter((line, at, all) => line !== all[at - 1]);
  return `exit ${status}\n${once.join('\n')}${stdout}`;
}

/** Undefined where both said and returned the same. */
export function differs(a: RunResult, b: RunResult): string | undefined {
  return outcome(a) === outcome(b) ? undefined : explain(a, b);
}

/** A signal ended it: nothing to agree with. (The reference's assertions, where an image has no extents.) */
export function crashed({ status }: RunResult): boolean {
  return status === null;
}

function explain(a: RunResult, b: RunResult): string {
  if (a.status !== b.status) {
    const show = ({ status, stderr, stdout }: RunResult) =>
      `exit ${status} ${(stderr || stdout).trim().split('\n').slice(0, 2).join(' / ').slice(0, 300)}`;
    return `theirs ${show(a)}; ours ${show(b)}`;
  }
  if (a.stderr !== b.stderr) return `stderr ${firstDifference(a.stderr, b.stderr)}`;
  return `stdout ${firstDifference(a.stdout, b.stdout)}`;
}
