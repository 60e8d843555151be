import { expect, test } from 'vitest';
import { qcow } from '../../src/engine/formats/qcow/index.js';
import { fuzz, fuzzTimeout } from './harness.js';
import { qcowSeeds } from './qcow-seeds.js';

test('qcow: damaged images', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(qcow, await qcowSeeds(), 200);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBeGreaterThan(result.runs / 5);
});
