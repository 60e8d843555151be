/** Races between what a job's worker says and what clients ask of it. */
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, it } from 'vitest';
import { interruptedJob } from '../../src/daemon/jobs/job.js';
import { JobManager, type JobSettings } from '../../src/daemon/jobs/manager.js';
import type { Log } from '../../src/daemon/log.js';
import { EventBus } from '../../src/daemon/sessions/events.js';
import type { Session } from '../../src/daemon/sessions/session.js';
import type { ToWorker } from '../../src/daemon/workers/messages.js';
import type { JobListener, Pool } from '../../src/daemon/workers/pool.js';

const log = { info() {}, debug() {}, warn() {}, error() {} } as unknown as Log;
const session = {
  listening: true,
  waiting: 0,
  transport: { kind: 'unix' },
  onGone: () => () => {},
  onClosed: () => () => {},
} as unknown as Session;
const options = { priority: 0, paused: false, 'auto-finalize': true, 'auto-dismiss': false, wait: true };

function managed(more: Partial<JobSettings> = {}) {
  const listeners: JobListener[] = [];
  const posted: ToWorker[] = [];
  const pool = {
    run(_: unknown, listener: JobListener) {
      listeners.push(listener);
      return { post: (message: ToWorker) => posted.push(message), kill() {} };
    },
  } as unknown as Pool;
  const settings: JobSettings = {
    ...{ maxRunning: 1, maxJobs: 1, killTimeout: 5, policy: {}, maxPerDevice: 0, stallTimeout: 0 },
    ...more,
  };
  return { jobs: new JobManager(pool, new EventBus(), log, settings), listeners, posted };
}

it('a job that is through as it is asked to pause waits for job-finalize all the same', () => {
  const { jobs, listeners, posted } = managed();
  jobs.start('image-convert', {}, '/', { ...options, id: 'a', 'auto-finalize': false } as never, session);
  jobs.pause('a');
  listeners[0]!.message({ type: 'pending' });
  listeners[0]!.message({ type: 'paused' });
  expect(jobs.info('a').status).toBe('pending');
  jobs.finalize('a');
  expect(posted.at(-1)).toEqual({ type: 'finalize' });
});

it('what was cut off is not forgotten by a resumption that is refused', () => {
  const ended: string[] = [];
  const journal = { markOf: () => ({}), created() {}, started() {}, ended: (id: string) => ended.push(id) };
  const { jobs, listeners } = managed({ journal: journal as never });
  const entry = {
    operation: 'image-convert',
    params: {},
    owner: '',
    autoDismiss: false,
    created: 1,
  } as const;
  jobs.start('image-convert', { x: 1 }, '/', { ...options, id: 'other' } as never, session);
  const job = interruptedJob({ ...entry, id: 'cut', digest: '' });
  jobs.restore([{ ...entry, id: 'cut', digest: job.lasting }]);
  const lasting = jobs.get('other').lasting;
  jobs.dismiss('cut');
  ended.length = 0;
  jobs.restore([{ ...entry, id: 'cut', digest: lasting }]);
  const resume = () =>
    jobs.start('image-convert', { x: 1, resume: true }, '/', { ...options, id: 'cut' } as never, session);
  expect(resume).toThrow(/too-many|more than 1 jobs/);
  expect([ended, jobs.info('cut').failure?.data?.kind]).toEqual([[], 'interrupted']);
  listeners[0]!.message({ type: 'done', json: '{}', progress: undefined });
  jobs.dismiss('other');
  ended.length = 0;
  resume();
  // The record of the new job takes the old one's place: at no moment there is none.
  expect([ended, jobs.info('cut').status]).toEqual([[], 'running']);
});

it('a mark is given up by who goes on from it, not by who fails before', () => {
  const said: string[] = [];
  const journal = {
    ...{ full: false, markOf: () => ({ offset: 5 }), created() {}, started() {}, mark() {} },
    ended: (id: string) => said.push(`${id} ended`),
    untouched: (id: string, error: string) => said.push(`${id} untouched: ${error}`),
  };
  const { jobs, listeners } = managed({ journal: journal as never, maxJobs: 2 });
  const failure = { kind: 'locked', message: 'in use', context: {} } as const;
  for (const id of ['before', 'after']) {
    jobs.start('image-convert', { id, resume: true }, '/', { ...options, id } as never, session);
    if (id === 'after') listeners.at(-1)!.message({ type: 'mark', mark: { offset: 6 } });
    listeners.at(-1)!.message({ type: 'failed', failure });
  }
  jobs.start('image-convert', { resume: true }, '/', { ...options, id: 'done' } as never, session);
  listeners.at(-1)!.message({ type: 'done', json: '{}', progress: undefined });
  expect(said).toEqual(['before untouched: locked', 'after ended', 'done ended']);
});

it('what the journal has no room for is refused, and what leaves no trace is not', () => {
  const journal = { full: true, markOf() {}, created() {}, started() {}, ended() {} };
  const { jobs } = managed({ journal: journal as never });
  const start = (operation: 'image-check' | 'image-info') =>
    jobs.start(operation, {}, '/', options as never, session);
  expect(() => start('image-check')).toThrow(/no room/);
  expect(start('image-info').status).toBe('running');
});

it('a job whose client has gone before it is there can be dismissed', () => {
  const { jobs } = managed();
  const gone = { ...session, listening: false, onGone: (callback: () => void) => callback() };
  const more = { ...options, id: 'a', 'cancel-on-disconnect': true };
  jobs.start('image-convert', {}, '/', more as never, gone as unknown as Session);
  expect(jobs.info('a').status).toBe('concluded');
  jobs.dismiss('a');
  expect(jobs.list()).toEqual([]);
});

it('a worker that is being ended gets no other job', async () => {
  // Workers need the compiled module.
  const dist = process.env.IMGD_DIST ?? 'dist';
  const { createPool } = (await import(
    pathToFileURL(resolve(dist, 'src/daemon/workers/pool.js')).href
  )) as typeof import('../../src/daemon/workers/pool.js');
  const engine = `data:text/javascript,${encodeURIComponent(
    'export const runOperation = async () => ({ isOk: () => true, value: {} })',
  )}`;
  const pool = createPool({ engine, memory: 64, log });
  const message = { type: 'run', operation: 'image-info', params: {}, cwd: '/', policy: {}, rate: undefined };
  const run = (job: string, then?: () => void) =>
    new Promise<string>((resolve) => {
      const listener: JobListener = {
        message(said) {
          if (said.type !== 'done') return;
          then?.();
          resolve('done');
        },
        lost: ({ message: text }) => resolve(text),
      };
      assignment = pool.run({ ...message, job } as never, listener);
    });
  let assignment: ReturnType<typeof pool.run> | undefined;
  expect(await run('warm')).toBe('done');
  let second: Promise<string> | undefined;
  const first = run('first', () => {
    second = run('second');
  });
  // Sent at the end of the turn; its outcome is on its way when it is ended.
  await new Promise((sent) => setImmediate(sent));
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 300);
  assignment!.kill('ended');
  expect(await first).toBe('done');
  expect(await second).toBe('done');
  await pool.close();
});
