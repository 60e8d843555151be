import { expect, test } from 'vitest';
import { qed } from '../../src/engine/formats/qed/index.js';
import { fuzz, fuzzTimeout } from './harness.js';
import { qedSeeds } from './qed-seeds.js';

test('qed: damaged images', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(qed, await qedSeeds(), 150);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBeGreaterThan(result.runs / 5);
});
