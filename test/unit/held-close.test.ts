/** An engine thread that hangs keeps nobody waiting at the end. */
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, it, vi } from 'vitest';
import type { Log } from '../../src/daemon/log.js';
import type { RunMessage } from '../../src/daemon/workers/messages.js';

const dist = process.env.IMGD_DIST ?? 'dist';
const load = (path: string) => import(pathToFileURL(resolve(dist, path)).href);

it('calls and jobs that a hung engine thread has are answered when it is closed', async () => {
  // The thread needs the compiled module.
  const { HeldImages } = (await load(
    'src/daemon/images/held.js',
  )) as typeof import('../../src/daemon/images/held.js');
  const { Owners } = (await load(
    'src/daemon/images/owners.js',
  )) as typeof import('../../src/daemon/images/owners.js');
  const engine = `data:text/javascript,${encodeURIComponent(
    'export const runOperation = () => { for (;;); }',
  )}`;
  const log = { info() {}, error() {} } as unknown as Log;
  const held = new HeldImages({
    ...{ engine, memory: 64, policy: {}, owners: new Owners(), log },
    publish() {},
  });
  const message = { type: 'run', job: 'j', operation: 'image-check', params: {}, cwd: '/', policy: {} };
  const lost = new Promise<string>((done) => {
    held.run(message as unknown as RunMessage, { message() {}, lost: ({ kind }) => done(kind) });
  });
  // It has begun to hang.
  await new Promise((passed) => setTimeout(passed, 500));
  const call = held.users().catch((error: { failure: { kind: string } }) => error.failure.kind);
  const from = performance.now();
  const clock = vi.spyOn(Date, 'now').mockImplementation(() => 1e12 + (performance.now() - from) * 20);
  try {
    await held.close();
  } finally {
    clock.mockRestore();
  }
  expect([await call, await lost]).toEqual(['shutting-down', 'shutting-down']);
});
