/** Crashes while VDI images are written. Blocks are 1 MiB: few of them, few states. */
import { describe, expect, it } from 'vitest';
import { vdi } from '../../src/engine/formats/vdi/index.js';
import { type Expectation, sampleCount, verifyCrashes } from './invariants.js';
import { record, type Scenario } from './scenario.js';

const M = 1024 * 1024;
const MISMATCH = /^ERROR: allocated blocks mismatch, is (\d+), should be (\d+)$/;

/**
 * The format has one way to say that blocks are lost, and it is an error of the check: the header counts more blocks than
 * are used. Here it is what it means, a leak.
 */
function leaksAllowed(expected: Expectation): Expectation {
  return {
    ...expected,
    async open(state) {
      const image = await expected.open(state);
      const { check } = image;
      if (check === undefined) return image;
      return {
        ...image,
        async check() {
          const found = await check();
          const counts = found.lines.map((line) => MISMATCH.exec(line)).find((match) => match !== null);
          if (counts == null || Number(counts[1]) > Number(counts[2])) return found;
          const corruptions = found.result.corruptions - 1;
          return { ...found, result: { ...found.result, corruptions, leaks: 1 } };
        },
      };
    },
  };
}

async function survives(scenario: Omit<Scenario, 'driver'>): Promise<void> {
  const { log, start, expected } = await record({ ...scenario, driver: vdi });
  const { violations } = await verifyCrashes(log, start, leaksAllowed(expected), {
    seed: 1,
    samples: sampleCount(scenario.samples ?? 40),
    torn: true,
  });
  expect(violations).toEqual([]);
}

describe('vdi: crashes while', { timeout: 120_000 }, () => {
  it('a new image is written', async () => {
    await survives({
      size: 3 * M,
      async act(guest) {
        await guest.write(M + 1000, 2000, 1);
        await guest.flush();
        await guest.write(0, 4096, 2);
        await guest.write(M, 512, 3);
      },
    });
  });

  it('an existing image is written by several', async () => {
    await survives({
      size: 4 * M,
      before: (guest) => guest.write(2 * M, 4096, 1),
      async act(guest) {
        await Promise.all([
          guest.write(100, 2000, 2),
          guest.flush(),
          guest.write(2 * M + 512, 1024, 3),
          guest.write(3 * M, 512, 4),
        ]);
        await guest.zero(2 * M, 4096);
      },
    });
  });

  it('a static image is written', async () => {
    await survives({
      size: 2 * M,
      options: { static: true },
      async act(guest) {
        await guest.write(M - 512, 1024, 1);
        await guest.zero(0, M);
      },
    });
  });
});
