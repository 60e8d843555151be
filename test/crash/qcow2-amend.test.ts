/** Amending qcow2 images: a crash in the middle leaves the guest's content as it was, and leaks at most. */
import { describe, expect, it } from 'vitest';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { type Guest, pattern, type Scenario, survives } from './scenario.js';

const K = 1024;
const SIZE = 256 * K;

function amends(options: OptionValues) {
  return async ({ image }: Guest): Promise<void> => {
    await image.format.amender!.amend(options, {
      signal: new AbortController().signal,
      pace: () => undefined,
      resize: (size) => image.format.resize!(size, { preallocation: 'off' }),
      progress: () => {},
    });
  };
}

async function filled(guest: Guest): Promise<void> {
  await guest.write(0, 100 * K, 1);
  await guest.zero(20 * K, 10 * K);
  await guest.zero(150 * K, 20 * K);
  await guest.write(200 * K, 10 * K, 2);
}

const cases: Readonly<Record<string, Omit<Scenario, 'size'>>> = {
  'narrower refcounts': { before: filled, act: amends({ refcount_bits: 1 }) },
  'wider refcounts': { before: filled, act: amends({ refcount_bits: 64 }) },
  'up, and other refcounts': {
    options: { compat: '0.10' },
    before: (guest) => guest.write(0, 100 * K, 1),
    act: amends({ compat: '1.1', refcount_bits: 8, lazy_refcounts: true }),
  },
  down: { before: filled, act: amends({ compat: '0.10' }) },
  'down, over a backing file': {
    backing: pattern(0, SIZE, 9),
    before: filled,
    act: amends({ compat: '0.10', lazy_refcounts: false }),
  },
  'down, with larger clusters': {
    options: { cluster_size: 4096 },
    backing: pattern(0, SIZE, 9),
    before: filled,
    act: amends({ compat: '0.10' }),
  },
  'up, with a backing file': {
    options: { compat: '0.10', cluster_size: 4096 },
    backing: pattern(0, SIZE, 9),
    before: (guest) => guest.write(0, 30 * K, 1),
    act: amends({ compat: '1.1' }),
  },
};

describe('a crash while a qcow2 image is amended', () => {
  for (const [name, scenario] of Object.entries(cases)) {
    it(`${name}: content as before, no corruption`, async () => {
      expect(await survives({ size: SIZE, ...scenario })).toBeGreaterThan(10);
    }, 120_000);
  }
});
