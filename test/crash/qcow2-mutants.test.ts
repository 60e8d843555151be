/**
 * The crash suite tried on the driver itself: with flushes taken out of a recording, one by one, it must find that the
 * order of the driver's writes no longer holds.
 */
import { expect, it } from 'vitest';
import { verifyCrashes } from './invariants.js';
import { pattern, record, type Scenario } from './scenario.js';

const K = 1024;

async function caught(scenario: Scenario): Promise<{ flushes: number; found: string[] }> {
  const { log, start, expected } = await record(scenario);
  const flushes = log.entries.filter(({ request }) => request.kind === 'flush');
  const found: string[] = [];
  for (const flush of flushes) {
    const { violations } = await verifyCrashes(log.without(flush), start, expected, {
      seed: 1,
      samples: 120,
    });
    if (violations[0] !== undefined) found.push(violations[0]);
  }
  return { flushes: flushes.length, found };
}

it('a refcount that reaches the disk after its L2 entry is found', async () => {
  const { found } = await caught({
    size: 64 * K,
    // the L2 table is there already: a new one would be linked by a later write only
    before: (guest) => guest.write(20 * K, K, 1),
    act: (guest) => guest.write(0, 3 * K, 1),
  });
  expect(found.some((line) => /corruptions/.test(line))).toBe(true);
});

it('data that reaches the disk after its L2 entry is found', async () => {
  const { found } = await caught({
    size: 64 * K,
    // in a file of its own the data has flushes of its own, and no refcounts
    options: { data_file: 'data' },
    backing: pattern(0, 64 * K, 9),
    before: (guest) => guest.write(20 * K, K, 1),
    act: (guest) => guest.write(100, 200, 1),
  });
  expect(found.some((line) => /neither old/.test(line))).toBe(true);
});

it('a cluster that is given back before its last reference is gone is found', async () => {
  const { found } = await caught({
    size: 64 * K,
    before: (guest) => guest.write(0, 8 * K, 1),
    act: (guest) => guest.discard(0, 4 * K),
  });
  expect(found.some((line) => /corruptions/.test(line))).toBe(true);
});
