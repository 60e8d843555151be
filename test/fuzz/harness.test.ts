/** The harness must see what it is there to see. */
import { openSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { raw } from '../../src/engine/formats/raw/index.js';
import type { FormatDriver, FormatNode } from '../../src/engine/node/driver.js';
import { Guards } from './guards.js';
import { fuzz } from './harness.js';
import { mutate } from './mutate.js';
import { Random } from './random.js';
import type { Seed } from './seed.js';

const seed: Seed = {
  name: 'seed',
  files: [
    {
      name: 'image',
      bytes: new Uint8Array(1024),
      fields: [{ name: 'field', at: 0, width: 4, little: false }],
      tables: [{ name: 'table', at: 512, count: 8, width: 8, little: true }],
      texts: [],
    },
  ],
};

/** raw, but for images that were changed. */
function broken(fault: (node: FormatNode) => unknown): FormatDriver {
  return {
    ...raw,
    async open(context) {
      const node = await raw.open(context);
      const head = new Uint8Array(context.file.size);
      await context.file.read(0, head);
      if (head.length !== 1024 || head.some((byte) => byte !== 0)) await fault(node);
      return node;
    },
  };
}

test('a mutant is the same whenever it is made, and the seed stays as it is', () => {
  for (let number = 0; number < 200; number++) {
    const one = mutate(seed, new Random(number));
    const two = mutate(seed, new Random(number));
    expect(Buffer.from(one.image).equals(two.image)).toBe(true);
    expect(one.changes).toEqual(two.changes);
  }
  expect(seed.files[0]!.bytes.every((byte) => byte === 0)).toBe(true);
});

test.skipIf(process.env.IMGD_FUZZ_SECONDS !== undefined || process.env.IMGD_FUZZ_SEED !== undefined)(
  'each kind of misbehaviour is reported',
  async () => {
    const faults: readonly (readonly [string, (node: FormatNode) => unknown])[] = [
      ['TypeError', () => (undefined as unknown as Uint8Array).length],
      [
        'internal',
        () => {
          throw new ImageError('internal', 'a bug');
        },
      ],
      ['touched files', () => openSync('/dev/null', 'r')],
      ['bytes at once', () => new Uint8Array(100 * 1024 * 1024)],
      [
        'of processor time',
        () => {
          const began = process.cpuUsage();
          const used = () => process.cpuUsage(began).user + process.cpuUsage(began).system;
          while (used() < 400_000) for (let i = 0; i < 1e5; i++);
        },
      ],
      [
        'map of',
        (node) => {
          node.map = () => ({ kind: 'zero', length: 0 });
        },
      ],
    ];
    for (const [expected, fault] of faults) {
      const result = await fuzz(broken(fault), [seed], 2, 300);
      expect(result.failures.join('\n'), expected).toContain(expected);
    }
  },
);

test('what is awaited for ever is given up', async () => {
  const guards = new Guards(join(tmpdir(), 'imgd-fuzz'), 200);
  try {
    await expect(
      guards.watch('waits', new Uint8Array(0), () => new Promise(() => undefined)),
    ).rejects.toThrow('not finished after 200 ms');
  } finally {
    await guards.stop();
  }
});
