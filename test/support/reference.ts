/** The reference programs, where they are installed, and how tests that need them skip: loudly, or not at all in CI. */
import { spawnSync } from 'node:child_process';
import { accessSync, constants, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { afterAll, describe, it } from 'vitest';

function find(program: string): string | undefined {
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    const path = join(folder, program);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // the next folder
    }
  }
  return undefined;
}

const hidden = process.env.IMGD_NO_REFERENCE === '1';

/** Absolute paths of the reference programs; undefined where one is missing (or IMGD_NO_REFERENCE=1 hides them). */
export const reference = {
  qemuImg: hidden ? undefined : find('qemu-img'),
  qemuIo: hidden ? undefined : find('qemu-io'),
  qemuNbd: hidden ? undefined : find('qemu-nbd'),
  qemuStorageDaemon: hidden ? undefined : find('qemu-storage-daemon'),
};

const complete = reference.qemuImg !== undefined && reference.qemuIo !== undefined;

/** A `describe` whose tests need the reference. Without it they are skipped and say so; IMGD_REQUIRE_REFERENCE=1 makes that a failure. */
export function describeInterop(name: string, body: () => void): void {
  if (complete) {
    describe(name, body);
    return;
  }
  if (process.env.IMGD_REQUIRE_REFERENCE === '1') {
    throw new Error(`${name}: the reference qemu-img and qemu-io are required and not installed`);
  }
  process.stderr.write(`\nSKIPPED (no reference qemu-img/qemu-io in PATH): ${name}\n`);
  // The body is not run: it may make images with the reference while tests are collected.
  describe.skip(name, () => it('needs the reference', () => undefined));
}

export interface RunResult {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end; output as UTF-8. */
export function run(
  program: string,
  args: readonly string[],
  options: {
    readonly cwd?: string;
    readonly env?: NodeJS.ProcessEnv;
    readonly input?: string;
    readonly timeout?: number;
    readonly argv0?: string;
  } = {},
): RunResult {
  const done = spawnSync(program, args, {
    encoding: 'utf8',
    maxBuffer: 256 * 1024 * 1024,
    timeout: options.timeout ?? 120_000,
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.input === undefined ? {} : { input: options.input }),
    ...(options.argv0 === undefined ? {} : { argv0: options.argv0 }),
    env: { ...process.env, LC_ALL: 'C', ...options.env },
  });
  // Also one that was stopped because it took too long: what it was and what it had said is the first thing asked.
  // A program that ends before it has read all of its input is none of these.
  if (done.error !== undefined && (done.error as NodeJS.ErrnoException).code !== 'EPIPE') {
    throw new Error(`${program} ${args.join(' ')}: ${done.error.message}\n${done.stderr}`, {
      cause: done.error,
    });
  }
  return { status: done.status, stdout: done.stdout, stderr: done.stderr };
}

/** A new folder for scratch images, removed when the test file has ended. */
export function tempDir(): string {
  const folder = mkdtempSync(join(tmpdir(), 'imgd-test-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
