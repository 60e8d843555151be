import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { tempDir } from '../support/reference.js';
import { fake, Peer, type RunningDaemon, sleep, startDaemon } from './support/daemon.js';

const folder = tempDir();
let daemon: RunningDaemon;
beforeAll(async () => {
  daemon = await startDaemon(join(folder, 'j.sock'), [
    '--max-running',
    '2',
    '--max-jobs',
    '10',
    '--worker-memory',
    '64',
    '--kill-timeout',
    '1',
  ]);
});
afterAll(() => void daemon.process.kill('SIGKILL'));

const connect = (): Promise<Peer> => Peer.connect(daemon.socket);
async function watching(job?: string): Promise<Peer> {
  const peer = await connect();
  await peer.call('events-subscribe', job === undefined ? {} : { filter: { job } });
  return peer;
}
const states = (peer: Peer, job: string): string[] =>
  peer
    .events('JOB_STATUS_CHANGE')
    .map((each) => each.data as { id: string; status: string })
    .filter((data) => data.id === job)
    .map((data) => data.status);

describe('jobs', () => {
  it('go through their states, and all is told before the answer', async () => {
    const peer = await watching('whole');
    const { result } = await peer.call('image-check', fake('steps:5:1000:30', { id: 'whole' }));
    expect(result).toEqual({ total: 5000 });
    expect(states(peer, 'whole')).toEqual(['created', 'running', 'concluded', 'null']);
    const last = peer.events('JOB_PROGRESS').at(-1)!.data as Record<string, unknown>;
    expect(last).toMatchObject({ phase: 'copy', done: 5000, total: 5000, written: 5000, percent: 100 });
    expect((peer.received.at(-1) as { id: number }).id).toBeDefined();
    const seqs = peer.events().map((each) => each.seq);
    expect(seqs).toEqual([...seqs].sort((a, b) => a - b));
  });

  it('can be started without waiting: created and running come before the answer', async () => {
    const peer = await watching('behind');
    const { result } = await peer.call('image-check', fake('steps:3:1000:50', { id: 'behind', wait: false }));
    expect(result).toEqual({ job: 'behind' });
    expect(states(peer, 'behind')).toEqual(['created', 'running']);
    expect((await peer.call('job-wait', { id: 'behind' })).result).toEqual({ total: 3000 });
    // Told, so dismissed.
    const gone = await peer.call('job-wait', { id: 'behind' });
    expect(gone.error).toMatchObject({ code: -32030, data: { kind: 'job-not-found' } });
  });

  it('tell of 100 % only after success', async () => {
    const peer = await watching('flushing');
    const id = peer.send('image-check', fake('flush:300', { id: 'flushing' }));
    await peer.until(() => peer.events('JOB_PROGRESS')[0]);
    const during = peer.events('JOB_PROGRESS').map((each) => (each.data as { percent: number }).percent);
    expect(Math.max(...during)).toBeLessThan(100);
    await peer.answer(id);
    expect((peer.events('JOB_PROGRESS').at(-1)!.data as { percent: number }).percent).toBe(100);
  });

  it('tell of progress at most ten times a second', async () => {
    const peer = await watching('often');
    await peer.call('image-check', fake('steps:1000:10:1', { id: 'often' }));
    const events = peer.events('JOB_PROGRESS');
    const [first, last] = [events[0]!, events.at(-1)!].map(
      ({ timestamp }) => timestamp.seconds + timestamp.microseconds / 1e6,
    );
    expect(events.length).toBeLessThanOrEqual((last! - first!) * 10 + 3);
    expect(events.length).toBeGreaterThan(5);
    expect(events[4]!.data).toMatchObject({ rate: expect.any(Number), eta: expect.any(Number) });
  });

  it('fail with all that the engine said', async () => {
    const peer = await watching('failing');
    const { error } = await peer.call('image-check', fake('fail', { id: 'failing' }));
    expect(error).toEqual({
      code: -32004,
      message: 'error while writing: No space left on device',
      data: {
        class: 'GenericError',
        kind: 'no-space',
        path: '/x/y.qcow2',
        offset: 65536,
        errno: 'ENOSPC',
        hint: 'make room',
        check: 'space',
        job: 'failing',
      },
    });
    const concluded = peer
      .events('JOB_STATUS_CHANGE')
      .find((each) => (each.data as { status: string }).status === 'concluded');
    expect(concluded?.data).toMatchObject({ error: { code: -32004 } });
  });

  it('can be cancelled while running', async () => {
    const peer = await watching('cancel-me');
    const id = peer.send('image-check', fake('steps:100000:10:5', { id: 'cancel-me' }));
    await peer.status('cancel-me', 'running');
    expect((await peer.call('job-cancel', { id: 'cancel-me' })).result).toEqual({});
    expect((await peer.answer(id)).error).toMatchObject({ code: -32013, data: { kind: 'cancelled' } });
    expect(states(peer, 'cancel-me')).toEqual(['created', 'running', 'aborting', 'concluded', 'null']);
    const last = peer.events('JOB_PROGRESS').at(-1)?.data as { percent: number } | undefined;
    expect(last?.percent ?? 0).toBeLessThan(100);
  });

  it('can be cancelled while they use a core without a pause', async () => {
    const peer = await watching('burning');
    const id = peer.send('image-check', fake('burn:20000', { id: 'burning' }));
    await peer.status('burning', 'running');
    await sleep(100);
    const from = performance.now();
    await peer.call('job-cancel', { id: 'burning' });
    // By itself, not by the end of its worker.
    expect((await peer.answer(id)).error).toMatchObject({
      message: 'Operation cancelled',
      data: { kind: 'cancelled' },
    });
    console.log(`cancel of a job that never waits: ${Math.round(performance.now() - from)} ms`);
  });

  it('queue beyond the limit, and can be cancelled there; short ones pass by', async () => {
    const peer = await watching();
    const ids = ['q1', 'q2', 'q3', 'q4'].map((job) =>
      peer.send('image-check', fake('steps:100000:10:5', { id: job })),
    );
    await peer.status('q2', 'running');
    const jobs = (await peer.call('query-jobs')).result as {
      id: string;
      status: string;
      'queue-position'?: number;
    }[];
    expect(jobs.map((job) => [job.id, job.status, job['queue-position']])).toEqual([
      ['q1', 'running', undefined],
      ['q2', 'running', undefined],
      ['q3', 'created', 1],
      ['q4', 'created', 2],
    ]);
    expect((await peer.call('image-info', { image: { filename: 'x' } })).result).toBeDefined();
    await peer.call('job-cancel', { id: 'q3' });
    expect((await peer.answer(ids[2])).error?.data?.kind).toBe('cancelled');
    expect(states(peer, 'q3')).toEqual(['created', 'aborting', 'concluded', 'null']);
    await peer.call('job-cancel', { id: 'q1' });
    await peer.status('q4', 'running');
    for (const job of ['q2', 'q4']) await peer.call('job-cancel', { id: job });
    for (const id of ids) await peer.answer(id);
  });

  it('pause and resume', async () => {
    const peer = await watching('pausing');
    const id = peer.send('image-check', fake('steps:60:10:10', { id: 'pausing' }));
    await peer.status('pausing', 'running');
    await sleep(100);
    expect((await peer.call('job-pause', { id: 'pausing' })).result).toEqual({});
    await peer.status('pausing', 'paused');
    expect((await peer.call('job-pause', { id: 'pausing' })).error?.message).toBe('Job is already paused');
    await sleep(150);
    const [before] = (await peer.call('query-jobs', { id: 'pausing' })).result;
    expect(before).toMatchObject({ status: 'paused', type: 'image-check', 'total-progress': 600 });
    await sleep(700);
    const [after] = (await peer.call('query-jobs', { id: 'pausing' })).result;
    expect(after['current-progress']).toBe(before['current-progress']);
    expect(after['current-progress']).toBeLessThan(600);
    expect((await peer.call('job-resume', { id: 'pausing' })).result).toEqual({});
    expect((await peer.call('job-resume', { id: 'pausing' })).error?.message).toMatch(/not paused/);
    expect((await peer.answer(id)).result).toEqual({ total: 600 });
    expect(states(peer, 'pausing')).toEqual(['created', 'running', 'paused', 'running', 'concluded', 'null']);
  });

  it('can start paused, and then take no worker', async () => {
    const peer = await watching('later');
    const id = peer.send('image-check', fake('steps:1:1:0', { id: 'later', paused: true }));
    await peer.status('later', 'paused');
    expect((await peer.call('query-status')).result.workers.busy).toBe(0);
    await peer.call('job-resume', { id: 'later' });
    expect((await peer.answer(id)).result).toEqual({ total: 1 });
    expect(states(peer, 'later')).toEqual(['created', 'paused', 'created', 'running', 'concluded', 'null']);
  });

  it('keep to a rate, which can be changed', async () => {
    const peer = await watching('slow');
    const id = peer.send('image-check', fake('steps:100:100000:0', { id: 'slow', 'rate-limit': 1_000_000 }));
    await peer.status('slow', 'running');
    const from = performance.now();
    await sleep(1000);
    const [job] = (await peer.call('query-jobs', { id: 'slow' })).result;
    const seconds = (performance.now() - from) / 1000;
    expect(job.speed).toBe(1_000_000);
    expect(job['current-progress']).toBeGreaterThan(200_000);
    expect(job['current-progress']).toBeLessThan(1_000_000 * seconds + 500_000);
    await peer.call('job-set-speed', { id: 'slow', speed: 0 });
    expect((await peer.answer(id)).result).toEqual({ total: 10_000_000 });
  });

  it("keep to their operation's own rate, unless the client has given one", async () => {
    const peer = await connect();
    const id = peer.send('image-check', fake('limited:100:100000:1000', { id: 'own' }));
    await sleep(300);
    const [job] = (await peer.call('query-jobs', { id: 'own' })).result;
    expect(job.speed).toBe(1000);
    await peer.call('job-set-speed', { id: 'own', speed: 100_000_000 });
    await peer.answer(id);
    const from = performance.now();
    await peer.call('image-check', fake('limited:100:100000:1000', { 'rate-limit': 0 }));
    expect(performance.now() - from).toBeLessThan(2000);
  });

  it('with an id can be retried: the same job, or an error for another one', async () => {
    const [one, two] = [await connect(), await connect()];
    const first = one.send('image-check', fake('steps:20:10:20', { id: 'retry' }));
    await sleep(50);
    const second = two.send('image-check', { job: { id: 'retry' }, ...fake('steps:20:10:20') });
    const other = await two.call('image-check', fake('steps:21:10:20', { id: 'retry' }));
    expect(other.error).toMatchObject({
      code: -32031,
      message: "Job ID 'retry' already in use",
      data: { kind: 'job-exists', job: 'retry' },
    });
    expect(
      (await two.call('image-info', { image: { filename: 'steps:20:10:20' }, job: { id: 'retry' } })).error
        ?.data?.kind,
    ).toBe('job-exists');
    expect((await two.call('query-jobs')).result.length).toBe(1);
    expect((await one.answer(first)).result).toEqual({ total: 200 });
    expect((await two.answer(second)).result).toEqual({ total: 200 });
  });

  it('outlive their client, and a retry is told how they ended', async () => {
    const two = await watching('orphan');
    const one = await connect();
    one.send('image-check', fake('steps:10:10:20', { id: 'orphan' }));
    await two.until(() => (two.events().length > 0 ? true : undefined));
    one.socket.destroy();
    await two.status('orphan', 'concluded');
    expect(states(two, 'orphan')).not.toContain('null');
    expect((await two.call('image-check', fake('steps:10:10:20', { id: 'orphan' }))).result).toEqual({
      total: 100,
    });
    expect(states(two, 'orphan').filter((state) => state === 'running').length).toBe(1);
    expect(states(two, 'orphan').at(-1)).toBe('null');
  });

  it('end with their client if asked to', async () => {
    const watcher = await watching();
    for (const leave of ['destroy', 'end'] as const) {
      const peer = await connect();
      peer.send(
        'image-check',
        fake('steps:100000:10:5', { id: `tied-${leave}`, 'cancel-on-disconnect': true }),
      );
      await watcher.status(`tied-${leave}`, 'running');
      peer.socket[leave]();
      await watcher.status(`tied-${leave}`, 'concluded');
    }
  });

  it('stay when not dismissed', async () => {
    const peer = await connect();
    await peer.call('image-check', fake('fail', { id: 'stays', 'auto-dismiss': false }));
    const [job] = (await peer.call('query-jobs', { id: 'stays' })).result;
    expect(job).toMatchObject({
      status: 'concluded',
      error: expect.stringMatching(/No space/),
      failure: { code: -32004 },
    });
    expect((await peer.call('job-cancel', { id: 'stays' })).error).toMatchObject({
      message: "Job 'stays' in state 'concluded' cannot accept command verb 'cancel'",
      data: { kind: 'job-state' },
    });
    expect((await peer.call('job-dismiss', { id: 'stays' })).result).toEqual({});
    expect((await peer.call('query-jobs', { id: 'stays' })).error?.data?.kind).toBe('job-not-found');
  });

  it('are limited in number', async () => {
    const peer = await connect();
    const ids = Array.from({ length: 10 }, (_, n) =>
      peer.send('image-check', fake('deaf', { id: `many-${n}`, paused: true })),
    );
    const refused = await peer.call('image-check', fake('fail'));
    expect(refused.error?.data?.kind).toBe('too-many-jobs');
    for (let n = 0; n < 10; n++) await peer.call('job-cancel', { id: `many-${n}` });
    for (const id of ids) await peer.answer(id);
  });

  it('say things in order, all of it, before the answer', async () => {
    const peer = await watching('talk');
    const { result } = await peer.call('image-check', fake('lines:5000:60', { id: 'talk' }));
    expect(result).toEqual({ count: 5000 });
    const output = peer.events('JOB_OUTPUT').map((each) => each.data as { stream: string; text: string });
    const all = output.map((each) => each.text).join('');
    expect(
      all
        .split('\n')
        .slice(0, -1)
        .map((line) => Number.parseInt(line, 10)),
    ).toEqual(Array.from({ length: 5000 }, (_, n) => n));
    expect(
      output
        .filter((each) => each.stream === 'stderr')
        .map((each) => each.text)
        .join('')
        .split('\n').length,
    ).toBe(501);
  });

  it('give map entries in batches', async () => {
    const peer = await watching('mapping');
    await peer.call('image-map', { ...fake('entries:10000', { id: 'mapping' }), stream: true });
    const batches = peer
      .events('JOB_OUTPUT')
      .map((each) => (each.data as { entries: { start: number }[] }).entries);
    expect(batches.length).toBeGreaterThan(10);
    expect(batches.flat().map((entry) => entry.start / 65536)).toEqual(
      Array.from({ length: 10_000 }, (_, n) => n),
    );
  });

  it('wait for their own client when it reads slowly, and lose nothing', async () => {
    const peer = await watching('pipe');
    peer.socket.pause();
    const id = peer.send('image-check', fake('lines:20000:1000', { id: 'pipe' }));
    await sleep(1000);
    const other = await connect();
    const { result } = await other.call('query-jobs', { id: 'pipe' });
    expect(result[0].status).toBe('running');
    expect((await other.call('query-status')).result.memory.rss).toBeLessThan(250 << 20);
    peer.socket.resume();
    expect((await peer.answer(id)).result).toEqual({ count: 20_000 });
    const text = peer
      .events('JOB_OUTPUT')
      .map((each) => (each.data as { text: string }).text)
      .join('');
    expect(text.split('\n').length).toBe(20_001);
  });

  it('do not wait for others who read slowly', async () => {
    const slow = await watching('fast');
    slow.socket.pause();
    const peer = await connect();
    const from = performance.now();
    expect((await peer.call('image-check', fake('lines:20000:1000', { id: 'fast' }))).result).toEqual({
      count: 20_000,
    });
    console.log(`20 MB of output with a stuck subscriber: ${Math.round(performance.now() - from)} ms`);
    expect((await peer.call('query-status')).result.subscriptions).toBe(0);
    slow.socket.resume();
    const ended = await slow.until(() => slow.events('SUBSCRIPTION_ENDED')[0]);
    expect(ended.data).toMatchObject({ reason: 'slow' });
    expect((await slow.call('ping')).result).toEqual({});
  });
});

describe('a worker that dies', () => {
  for (const [verb, kind, text] of [
    ['crash', 'worker-lost', /died: crash on purpose/],
    ['exit', 'worker-lost', /died/],
    ['memory', 'limit', /out of memory: the job needed more than 64 MiB/],
    ['bug', 'internal', /internal error: a bug on purpose/],
  ] as const) {
    it(`costs its own job only: ${verb}`, async () => {
      const peer = await watching(`neighbour-${verb}`);
      const neighbour = peer.send('image-check', fake('steps:20:10:20', { id: `neighbour-${verb}` }));
      await peer.status(`neighbour-${verb}`, 'running');
      const { error } = await peer.call('image-check', fake(verb));
      expect(error?.data?.kind).toBe(kind);
      expect(error?.message).toMatch(text);
      expect((await peer.answer(neighbour)).result).toEqual({ total: 200 });
      expect((await peer.call('image-check', fake('steps:1:1:0'))).result).toEqual({ total: 1 });
    });
  }

  it('is what a cancelled job gets that does not stop: spinning or deaf', async () => {
    for (const verb of ['spin', 'deaf']) {
      const peer = await watching(verb);
      const id = peer.send('image-check', fake(verb, { id: verb }));
      await peer.status(verb, 'running');
      const from = performance.now();
      await peer.call('job-cancel', { id: verb });
      expect((await peer.answer(id)).error).toMatchObject({
        data: { kind: 'cancelled' },
        message: expect.stringMatching(/ended/),
      });
      expect(performance.now() - from).toBeGreaterThan(800);
      expect(performance.now() - from).toBeLessThan(4000);
    }
  });

  it('dies at once by force', async () => {
    const peer = await watching('forced');
    const id = peer.send('image-check', fake('spin', { id: 'forced' }));
    await peer.status('forced', 'running');
    const from = performance.now();
    await peer.call('job-cancel', { id: 'forced', force: true });
    expect((await peer.answer(id)).error?.data?.kind).toBe('cancelled');
    expect(performance.now() - from).toBeLessThan(800);
  });
});
