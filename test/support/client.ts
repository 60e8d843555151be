/** Our qemu-img as a process, in its own process (no daemon) unless an environment says otherwise. */
import { join, resolve } from 'node:path';
import { type RunResult, run } from './reference.js';

const root = resolve(import.meta.dirname, '../..');
export const dist = resolve(root, process.env.IMGD_DIST ?? 'dist');
export const clientMain = join(dist, 'clients/qemu-img/main.js');
export const daemonMain = join(dist, 'src/daemon/main.js');

export function qemuImg(
  args: readonly string[],
  options: { readonly cwd?: string; readonly env?: NodeJS.ProcessEnv; readonly timeout?: number } = {},
): RunResult {
  return run(process.execPath, [clientMain, ...args], {
    ...options,
    env: { IMGD_SOCKET: '', ...options.env },
  });
}
