import { expect, test } from 'vitest';
import { cloop } from '../../src/engine/formats/cloop/index.js';
import { cloopSeeds } from './cloop-seeds.js';
import { fuzz, fuzzTimeout } from './harness.js';

test('cloop: damaged images', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(cloop, cloopSeeds, 300);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBeGreaterThan(result.runs / 8);
});
