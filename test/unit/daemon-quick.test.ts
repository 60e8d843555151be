/** Quick jobs share a thread: what one of them does to it must not become the others'. */
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, expect, it } from 'vitest';
import type { Log } from '../../src/daemon/log.js';
import type { Assignment, JobListener, Pool } from '../../src/daemon/workers/pool.js';

const log = { info() {}, debug() {}, warn() {}, error() {} } as unknown as Log;

// Params say what to do: `hang` keeps the thread, as a file system that does not answer would.
const engine = `data:text/javascript,${encodeURIComponent(`
  import { threadId } from 'node:worker_threads';
  const ok = (value) => ({ isOk: () => true, value });
  export async function runOperation(operation, { verb, ms = 0 }, context) {
    if (verb === 'exit') process.exit(3);
    if (verb === 'hang') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
    if (verb === 'sleep') await new Promise((resolve) => setTimeout(resolve, ms));
    if (verb === 'wait') {
      while (!context.signal.aborted) await new Promise((resolve) => setTimeout(resolve, 10));
      return { isOk: () => false, error: context.signal.reason };
    }
    return ok({ verb, thread: threadId });
  }
`)}`;

let pool: Pool;
let next = 0;
beforeEach(async () => {
  // Workers need the compiled module.
  const path = resolve(process.env.IMGD_DIST ?? 'dist', 'src/daemon/workers/pool.js');
  const { createPool } = (await import(
    pathToFileURL(path).href
  )) as typeof import('../../src/daemon/workers/pool.js');
  pool = createPool({ engine, memory: 64, log });
});
afterEach(() => pool.close());

interface Run {
  readonly ended: Promise<{ verb?: string; thread?: number; failure?: string }>;
  readonly assignment: Assignment;
}

function run(verb: string, ms = 0, operation = 'image-info'): Run {
  let assignment!: Assignment;
  const ended = new Promise<Awaited<Run['ended']>>((resolve) => {
    const listener: JobListener = {
      message(said) {
        if (said.type === 'done') resolve(JSON.parse(said.json));
        else if (said.type === 'failed') resolve({ failure: said.failure.kind });
      },
      lost: ({ kind }) => resolve({ failure: kind }),
    };
    const message = { type: 'run', job: `q${next++}`, operation, params: { verb, ms } };
    assignment = pool.run({ ...message, cwd: '/', policy: {}, rate: undefined } as never, listener);
  });
  return { ended, assignment };
}

it('several have one thread, which a long job does not take from them', async () => {
  const [first, ...rest] = await Promise.all(Array.from({ length: 8 }, () => run('sleep', 20).ended));
  expect(rest.every(({ thread }) => thread === first!.thread)).toBe(true);
  const long = await run('ok', 0, 'image-check').ended;
  expect(long.thread).not.toBe(first!.thread);
  expect((await run('ok').ended).thread).toBe(first!.thread);
});

it('one that ends its thread costs itself alone', async () => {
  const before = [run('sleep', 200), run('sleep', 200)];
  const bad = run('exit');
  const after = [run('ok'), run('sleep', 200)];
  expect((await bad.ended).failure).toBe('worker-lost');
  const rest = await Promise.all([...before, ...after].map(({ ended }) => ended));
  expect(rest.map(({ failure }) => failure)).toEqual([undefined, undefined, undefined, undefined]);
  expect((await run('ok').ended).verb).toBe('ok');
});

it('one that keeps its thread does not keep the others', async () => {
  await run('ok').ended;
  const bad = run('hang', 4000);
  const start = performance.now();
  const rest = await Promise.all([run('ok'), run('ok')].map(({ ended }) => ended));
  expect(rest.map(({ verb }) => verb)).toEqual(['ok', 'ok']);
  expect((await run('ok').ended).verb).toBe('ok');
  expect(performance.now() - start).toBeLessThan(3500);
  expect((await bad.ended).verb).toBe('hang');
});

it('one whose thread is ended takes nothing with it', async () => {
  await run('ok').ended;
  const other = run('sleep', 300);
  const bad = run('sleep', 10_000);
  await new Promise((resolve) => setTimeout(resolve, 50));
  bad.assignment.kill('ended');
  expect((await bad.ended).failure).toBe('worker-lost');
  expect((await other.ended).verb).toBe('sleep');
});

it('a cancellation reaches one that was started again', async () => {
  await run('ok').ended;
  const waits = run('wait');
  const bad = run('exit');
  expect((await bad.ended).failure).toBe('worker-lost');
  waits.assignment.post({ type: 'cancel' });
  expect((await waits.ended).failure).toBe('cancelled');
});
