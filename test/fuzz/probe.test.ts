/** Probing: any start of a file gets an answer, and raw where nothing else fits; raw images open whatever they hold. */
import { expect, test } from 'vitest';
import { driverNames, loadDriver } from '../../src/engine/formats/index.js';
import { raw } from '../../src/engine/formats/raw/index.js';
import type { FormatDriver } from '../../src/engine/node/driver.js';
import { probe } from '../../src/engine/node/probe.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { paddedHead } from './exercise.js';
import { fuzz, fuzzTimeout, numbers } from './harness.js';
import { mutate } from './mutate.js';
import { Random } from './random.js';
import type { Seed } from './seed.js';
import { vmdkSeeds } from './vmdk-seeds.js';

function plain(name: string, bytes: Uint8Array): Seed {
  return { name, files: [{ name, bytes, fields: [], tables: [], texts: [] }] };
}

const starts = [
  'QFI\xfb\0\0\0\x03',
  'KDMV',
  'COWD',
  '# Disk DescriptorFile\nversion=1\n',
  '',
  '\0'.repeat(600),
].map((start) =>
  plain(
    `start ${JSON.stringify(start.slice(0, 8))}`,
    new Uint8Array(Buffer.from(start.padEnd(700, 'x'), 'latin1')),
  ),
);
const seeds = [...starts, ...vmdkSeeds];

async function allDrivers(): Promise<FormatDriver[]> {
  const found: FormatDriver[] = [];
  for (const name of driverNames) {
    const driver = await loadDriver(name);
    if (driver !== undefined) found.push(driver);
  }
  return found;
}

test('every start of a file is some format', { timeout: fuzzTimeout }, async () => {
  const drivers = await allDrivers();
  for (const number of numbers(500)) {
    const random = new Random(number);
    const { image } = mutate(random.pick(seeds), random);
    const scores = drivers.map((driver) =>
      driver.probe(paddedHead(image), random.pick(['a', 'a.dmg', '']), image.length),
    );
    for (const score of scores) expect(score >= 0 && score <= 100, `mutant ${number}`).toBe(true);
    const found = await probe(new MemoryStorage(image, { filename: 'x', writable: false }));
    expect(driverNames, `mutant ${number}`).toContain(found.name);
  }
});

test('raw: any bytes', { timeout: fuzzTimeout }, async () => {
  const result = await fuzz(raw, seeds, 200);
  expect(result.failures.join('\n')).toBe('');
  expect(result.opened).toBe(result.runs);
});
