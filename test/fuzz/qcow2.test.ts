import { expect, test } from 'vitest';
import { qcow2 } from '../../src/engine/formats/qcow2/index.js';
import { fuzz, fuzzTimeout } from './harness.js';
import { qcow2Seeds } from './qcow2-seeds.js';

test('qcow2: damaged images', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(qcow2, await qcow2Seeds(), 250);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBeGreaterThan(result.runs / 5);
});
