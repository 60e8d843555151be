import { expect, test } from 'vitest';
import { vpc } from '../../src/engine/formats/vpc/index.js';
import { fuzz, fuzzTimeout } from './harness.js';
import { vpcSeeds } from './vpc-seeds.js';

test('vpc: damaged images', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(vpc, vpcSeeds, 300);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBeGreaterThan(result.runs / 5);
});
