import { expect, test } from 'vitest';
import { bochs } from '../../src/engine/formats/bochs/index.js';
import { bochsSeeds } from './bochs-seeds.js';
import { fuzz, fuzzTimeout } from './harness.js';

test('bochs: damaged images', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(bochs, bochsSeeds, 300);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBeGreaterThan(result.runs / 5);
});
