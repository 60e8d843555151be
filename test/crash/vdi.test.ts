/** Crashes while VDI images are written. Blocks are 1 MiB: few of them, few states. */
import { describe, it } from 'vitest';
import { vdi } from '../../src/engine/formats/vdi/index.js';
import type { Found } from './invariants.js';
import { type Scenario, survives as survivesAll } from './scenario.js';

const M = 1024 * 1024;
const MISMATCH = /^ERROR: allocated blocks mismatch, is (\d+), should be (\d+)$/;

/**
 * The format has one way to say that blocks are lost, and it is an error of the check: the header counts more blocks than
 * are used. Here it is what it means, a leak.
 */
function leaksAllowed(found: Found): Found {
  const counts = found.lines.map((line) => MISMATCH.exec(line)).find((match) => match !== null);
  if (counts == null || Number(counts[1]) > Number(counts[2])) return found;
  return { ...found, result: { ...found.result, corruptions: found.result.corruptions - 1, leaks: 1 } };
}

const survives = (scenario: Omit<Scenario, 'driver'>) =>
  survivesAll({ samples: 40, ...scenario, driver: vdi, judge: leaksAllowed });

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
