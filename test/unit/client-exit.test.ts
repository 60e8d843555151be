import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { clientMain } from '../support/client.js';
import { run, tempDir } from '../support/reference.js';

const folder = tempDir();

/** Node's own exit waits for V8's compiling threads, which now and then wait for the main thread, for ever. */
it('the program ends while V8 is compiling still', () => {
  const from = join(folder, 'a.raw');
  const to = join(folder, 'a.qcow2');
  // Nothing that is found zero: each of the many small clusters runs the same few functions, which V8 finds hot.
  writeFileSync(from, Buffer.alloc(8 << 20, 'a text that compresses'));
  const command = ['convert', '-f', 'raw', '-O', 'qcow2', '-o', 'cluster_size=4k', '-c', from, to];
  const ended = run(process.execPath, ['--concurrent-recompilation-delay=100000', clientMain, ...command], {
    env: { IMGD_SOCKET: '' },
    timeout: 50_000,
  });
  expect(ended).toMatchObject({ status: 0, stderr: '' });
  expect(run(process.execPath, [clientMain, 'compare', from, to]).status).toBe(0);
});
