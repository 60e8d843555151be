/** Runs our command lines one after the other for the matrix, which asks over the IPC channel. */
import { runHere } from './in-process.js';

process.on('message', async ({ args, cwd }: { args: readonly string[]; cwd: string }) => {
  process.send!(await runHere(args, cwd));
});
process.on('disconnect', () => process.exit());
