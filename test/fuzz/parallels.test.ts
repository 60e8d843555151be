import { expect, test } from 'vitest';
import { parallels } from '../../src/engine/formats/parallels/index.js';
import { fuzz, fuzzTimeout } from './harness.js';
import { parallelsSeeds } from './parallels-seeds.js';

test('parallels: damaged images', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(parallels, parallelsSeeds, 300);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBeGreaterThan(result.runs / 5);
});
