import { expect, test } from 'vitest';
import { vdi } from '../../src/engine/formats/vdi/index.js';
import { fuzz, fuzzTimeout } from './harness.js';
import { vdiSeeds } from './vdi-seeds.js';

test('vdi: damaged images', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(vdi, vdiSeeds, 150);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBeGreaterThan(result.runs / 5);
});
