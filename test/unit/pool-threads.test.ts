import { expect, it } from 'vitest';
import { run } from '../support/reference.js';

const SCRIPT = `
  import { readlinkSync, promises } from 'node:fs';
  import { getPriority } from 'node:os';
  const { lowerPool } = await import(process.argv[1]);
  const own = getPriority();
  await lowerPool(15);
  const seen = new Map();
  for (let n = 0; n < 10; n++) {
    for (const text of await Promise.all(Array.from({ length: 32 }, () => promises.readlink('/proc/thread-self')))) {
      const thread = Number(text.split('/').at(-1));
      seen.set(thread, getPriority(thread));
    }
  }
  console.log(JSON.stringify({ pool: [...seen.values()], unchanged: getPriority() === own }));
`;

it.skipIf(process.platform !== 'linux')('the pool gives way, the thread that answers does not', () => {
  const module = new URL('../../dist/src/daemon/pool-threads.js', import.meta.url).href;
  const { stdout, stderr } = run(process.execPath, ['--input-type=module', '-e', SCRIPT, module]);
  expect(stderr).toBe('');
  const { pool, unchanged } = JSON.parse(stdout) as { pool: number[]; unchanged: boolean };
  expect(unchanged).toBe(true);
  expect(pool.length).toBeGreaterThan(0);
  expect(pool.every((priority) => priority >= 15)).toBe(true);
});
