import { expect, test } from 'vitest';
import { vmdk } from '../../src/engine/formats/vmdk/index.js';
import { fuzz, fuzzTimeout } from './harness.js';
import { vmdkSeeds } from './vmdk-seeds.js';

test('vmdk: damaged images', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(vmdk, vmdkSeeds, 500);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBeGreaterThan(result.runs / 5);
});
