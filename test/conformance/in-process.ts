/** Our command line without a process of its own; one call at a time, since it changes the working directory. */
import { run } from '../../clients/qemu-img/cli.js';
import type { RunResult } from '../support/reference.js';

export async function runHere(args: readonly string[], cwd: string): Promise<RunResult> {
  const before = process.cwd();
  const text = { 1: '', 2: '' };
  process.chdir(cwd);
  try {
    const status = await run(args, {
      write(descriptor, part) {
        text[descriptor] += part;
      },
    });
    return { status, stdout: text[1], stderr: text[2] };
  } finally {
    process.chdir(before);
  }
}
