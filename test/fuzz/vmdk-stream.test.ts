/** Damaged streams that are written to: grains are appended, or refused; never anything but an ImageError. */
import { expect, test } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { vmdk } from '../../src/engine/formats/vmdk/index.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { fuzzTimeout, numbers } from './harness.js';
import { mutate } from './mutate.js';
import { Random } from './random.js';
import { vmdkSeeds } from './vmdk-seeds.js';

/** Host bytes that a mutant may come to hold. */
const CAPACITY = 64 * 1024 * 1024;

async function allowed(work: () => unknown): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    if (error instanceof ImageError && error.kind !== 'internal') return false;
    throw error;
  }
}

async function append(number: number, seeds: typeof vmdkSeeds): Promise<boolean> {
  const random = new Random(number);
  const mutant = mutate(random.pick(seeds), random);
  const file = new MemoryStorage(mutant.image, { writable: true, capacity: CAPACITY });
  const context = {
    file,
    options: {},
    forCheck: false,
    metadataOnly: false,
    openChild: async () => undefined,
    warn: () => {},
  };
  let written = false;
  await allowed(async () => {
    const node = await vmdk.open({ ...context, writable: true });
    const { pack } = node;
    for (let n = 0; pack?.always && n < 6; n++) {
      const grains = Math.ceil(node.size / pack.unit);
      const at = Math.floor((random.u32() / 2 ** 32) * grains) * pack.unit;
      const packed = await pack.compress(Buffer.alloc(pack.unit, n));
      if (at < node.size && (await allowed(() => pack.write(at, packed!)))) written = true;
      if (n === 3) await allowed(() => node.flush?.());
    }
    const flushed = await allowed(() => node.flush?.());
    await allowed(() => node.close());
    // What was an image still is one.
    if (flushed) await vmdk.open({ ...context, writable: false });
  });
  return written;
}

test('vmdk: damaged streams, appended to', { timeout: fuzzTimeout }, async () => {
  const seeds = vmdkSeeds.filter((seed) => /stream|compressed/i.test(seed.name));
  expect(seeds.length).toBeGreaterThan(0);
  let written = 0;
  let runs = 0;
  for (const number of numbers(300)) {
    runs++;
    try {
      if (await append(number, seeds)) written++;
    } catch (error) {
      throw new Error(`mutant ${number}`, { cause: error });
    }
  }
  expect(written).toBeGreaterThan(runs / 10);
});
