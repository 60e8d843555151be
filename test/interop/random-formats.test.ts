/** Random command lines over images of every format but raw and qcow2, ours against the reference's own. */
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { describeInterop, tempDir } from '../support/reference.js';
import { Duel } from './random-formats-run.js';

/**
 * More of them: IMGD_RANDOM_FORMATS=4000; others: IMGD_RANDOM_FORMATS_SEED=1. Not every difference that many show is a fault of
 * ours: some lines keep the reference busy for minutes, and some of its refusals come in another order.
 */
const CASES = Number(process.env.IMGD_RANDOM_FORMATS ?? 20);
const FIRST_SEED = Number(process.env.IMGD_RANDOM_FORMATS_SEED ?? 2013);

describeInterop('random command lines over all formats', () => {
  const folder = tempDir();
  for (let seed = FIRST_SEED; seed < FIRST_SEED + CASES; seed++) {
    it(`seed ${seed}`, async () => {
      const duel = new Duel(join(folder, String(seed)));
      try {
        await duel.run(seed);
        expect(duel.differences, duel.log).toEqual([]);
      } finally {
        duel.remove();
      }
    });
  }
});
