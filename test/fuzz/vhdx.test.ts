import { expect, test } from 'vitest';
import { vhdx } from '../../src/engine/formats/vhdx/index.js';
import type { FormatDriver } from '../../src/engine/node/driver.js';
import type { MemoryStorage } from '../../src/engine/storage/memory.js';
import { fuzz, fuzzTimeout } from './harness.js';
import { cleanSeeds, dirtySeeds } from './vhdx-seeds.js';

/** Opens for writing whatever it is asked, on a copy: images whose log is not empty open in no other way. */
const replaying: FormatDriver = {
  ...vhdx,
  async open(context) {
    if (context.writable) return vhdx.open(context);
    // A copy of its pages: a log may have made the file as long as it likes.
    const file = (context.file as MemoryStorage).clone({ writable: true, capacity: 2 ** 26 });
    return vhdx.open({ ...context, file, writable: true });
  },
};

test('vhdx: damaged images', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(vhdx, await cleanSeeds(), 25);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBeGreaterThan(result.runs / 5);
});

test('vhdx: damaged logs', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(replaying, await dirtySeeds(), 12);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBeGreaterThan(result.runs / 5);
});
