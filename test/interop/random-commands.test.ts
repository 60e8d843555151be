/** Random sequences of command lines through the reference and through ours: the same words, exit codes and images. */
import { expect, it } from 'vitest';
import { describeInterop, tempDir } from '../support/reference.js';
import { Comparison } from './command-differences.js';

/** More of them: IMGD_RANDOM_COMMANDS=400; others: IMGD_RANDOM_COMMANDS_SEED=1000. */
const CASES = Number(process.env.IMGD_RANDOM_COMMANDS ?? 6);
const FIRST_SEED = Number(process.env.IMGD_RANDOM_COMMANDS_SEED ?? 1);

const folder = tempDir();

describeInterop('random commands', () => {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + CASES; seed++) {
    it(`seed ${seed}`, { timeout: 120_000 }, () => {
      const found = new Comparison(folder).run(seed);
      const steps = found?.steps.join('\n');
      expect(found?.ours, `${found?.what}\n${steps}`).toBe(found?.theirs);
      // Where the texts are equal and the files are not.
      expect(found?.what, steps).toBeUndefined();
    });
  }
});
