import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { tempDir } from '../support/reference.js';
import { fake, Peer, type RunningDaemon, startDaemon } from './support/daemon.js';

const folder = tempDir();
let daemon: RunningDaemon;
let limited: RunningDaemon;
beforeAll(async () => {
  daemon = await startDaemon(join(folder, 's.sock'), ['--max-running', '1', '--stall-timeout', '1']);
  limited = await startDaemon(join(folder, 'l.sock'), ['--max-per-device', '1', '--kill-timeout', '0']);
});
afterAll(() => {
  daemon.process.kill('SIGKILL');
  limited.process.kill('SIGKILL');
});

type Info = Record<string, unknown>;
async function info(peer: Peer, id: string): Promise<Info> {
  const { result } = await peer.call('query-jobs', { id });
  return result[0] as Info;
}
const start = (peer: Peer, verb: string, id: string, job: object = {}) =>
  peer.call('image-check', fake(verb, { id, wait: false, 'auto-dismiss': false, ...job }));
const running = (peer: Peer): string[] =>
  peer
    .events('JOB_STATUS_CHANGE')
    .map(({ data }) => data as { id: string; status: string })
    .filter(({ status }) => status === 'running')
    .map(({ id }) => id);

describe('queued jobs', () => {
  it('start by priority, then in order of arrival, and say where they stand', async () => {
    const peer = await Peer.connect(daemon.socket);
    await peer.call('events-subscribe', {});
    await start(peer, 'steps:1000:1:100', 'first');
    await start(peer, 'steps:1:1:0', 'plain');
    await start(peer, 'steps:1:1:0', 'low', { priority: -5 });
    await start(peer, 'steps:1:1:0', 'high', { priority: 7 });
    await start(peer, 'steps:1:1:0', 'other');
    expect(await info(peer, 'high')).toMatchObject({
      ...{ 'queue-position': 1, 'waits-for': 'worker', priority: 7 },
    });
    expect(await info(peer, 'low')).toMatchObject({ 'queue-position': 4 });
    await peer.call('job-cancel', { id: 'first' });
    await peer.status('low', 'concluded');
    expect(running(peer)).toEqual(['first', 'high', 'plain', 'other', 'low']);
    const bad = await start(peer, 'echo', 'bad', { priority: 1000 });
    expect(bad.error).toMatchObject({ code: -32602, data: { member: 'job.priority' } });
  });

  it('come after others, and fail where these do', async () => {
    const peer = await Peer.connect(daemon.socket);
    await peer.call('events-subscribe', {});
    await start(peer, 'steps:1:1:300', 'a');
    await start(peer, 'steps:1:1:0', 'c', { after: ['a'] });
    await start(peer, 'steps:1:1:0', 'd', { after: ['a', 'c'], priority: 50 });
    expect(await info(peer, 'd')).toMatchObject({ 'waits-for': 'jobs', after: ['a', 'c'] });
    await peer.status('d', 'concluded');
    expect(running(peer)).toEqual(['a', 'c', 'd']);

    await start(peer, 'steps:1000:1:100', 'long');
    await start(peer, 'echo', 'next', { after: ['long'] });
    await start(peer, 'echo', 'last', { after: ['next'] });
    await peer.call('job-cancel', { id: 'long' });
    await peer.status('last', 'concluded');
    expect(await info(peer, 'last')).toMatchObject({
      error: "Job 'next' has failed, which this one was to come after",
      failure: { code: -32037, data: { kind: 'dependency' } },
    });
    expect(running(peer)).not.toContain('next');
    const late = await start(peer, 'echo', 'late', { after: ['long'] });
    expect(late.error).toMatchObject({ data: { kind: 'dependency', job: 'long' } });
    const unknown = await start(peer, 'echo', 'late', { after: ['nobody'] });
    expect(unknown.error).toMatchObject({ data: { kind: 'job-not-found' } });
    // What has concluded well is no obstacle.
    await start(peer, 'echo', 'late', { after: ['a'] });
    await peer.status('late', 'concluded');
  });

  it('wait for their storage device', async () => {
    const peer = await Peer.connect(limited.socket);
    await peer.call('events-subscribe', {});
    // The fake verb is a filename, too: one below the test's folder.
    const onDisk = (id: string, verb: string) =>
      peer.call('image-check', {
        ...{ cwd: folder, image: { filename: verb } },
        job: { id, wait: false, 'auto-dismiss': false },
      });
    const convert = (id: string, file: string) =>
      peer.call('image-convert', {
        ...{ cwd: folder, sources: [{ filename: file }], target: { filename: 'x' } },
        job: { id, wait: false, 'auto-dismiss': false },
      });
    await onDisk('elsewhere', 'deaf');
    await peer.status('elsewhere', 'running');
    await convert('second', 'a');
    await onDisk('third', '/proc/version');
    // Another device: it starts although one before it waits.
    await peer.status('third', 'concluded');
    expect(await info(peer, 'second')).toMatchObject({ 'queue-position': 1, 'waits-for': 'device' });
    await peer.call('job-cancel', { id: 'elsewhere', force: true });
    await peer.status('second', 'concluded');
  });
});

describe('a job that does not get on', () => {
  it('is told of once, and no more when it does', async () => {
    const peer = await Peer.connect(daemon.socket);
    await peer.call('events-subscribe', {});
    await start(peer, 'steps:2:10:1700', 'slow');
    const { data } = await peer.until(() => peer.events('JOB_STALLED')[0]);
    expect(data).toEqual({ id: 'slow', type: 'image-check', seconds: 1 });
    expect(await info(peer, 'slow')).toMatchObject({ 'stalled-since': expect.any(Number) });
    await peer.until(() => peer.events('JOB_PROGRESS')[0]);
    expect(await info(peer, 'slow')).not.toHaveProperty('stalled-since');
    await peer.status('slow', 'concluded');
    expect(peer.events('JOB_STALLED').length).toBeLessThanOrEqual(2);
    expect(daemon.log()).toContainEqual(expect.objectContaining({ msg: 'job stalled', job: 'slow' }));
  });
});

describe('a job that is not finalized by itself', () => {
  it('is pending until it is told to conclude, or is cancelled', async () => {
    const peer = await Peer.connect(daemon.socket);
    await peer.call('events-subscribe', {});
    await start(peer, 'steps:1:10:0', 'held', { 'auto-finalize': false });
    const early = await peer.call('job-finalize', { id: 'nobody' });
    expect(early.error).toMatchObject({ data: { kind: 'job-not-found' } });
    await peer.status('held', 'pending');
    expect((await peer.call('job-pause', { id: 'held' })).error).toMatchObject({
      data: { kind: 'job-state' },
    });
    expect((await peer.call('job-finalize', { id: 'held' })).result).toEqual({});
    expect((await peer.call('job-wait', { id: 'held' })).result).toEqual({ total: 10 });
    const late = await peer.call('job-finalize', { id: 'held' });
    expect(late.error?.message).toBe("Job 'held' in state 'concluded' cannot accept command verb 'finalize'");

    await start(peer, 'steps:1:10:0', 'dropped', { 'auto-finalize': false });
    await peer.status('dropped', 'pending');
    await peer.call('job-cancel', { id: 'dropped' });
    expect((await peer.call('job-wait', { id: 'dropped' })).error).toMatchObject({
      data: { kind: 'cancelled' },
    });
    await start(peer, 'fail', 'failing', { 'auto-finalize': false });
    expect((await peer.call('job-wait', { id: 'failing' })).error).toMatchObject({
      data: { kind: 'no-space' },
    });
  });

  it('puts its target in its place only then', async () => {
    const { socket, process } = await startDaemon(join(folder, 'r.sock'), [], { real: true });
    const peer = await Peer.connect(socket);
    await peer.call('events-subscribe', {});
    const create = (id: string) =>
      peer.call('image-create', {
        ...{ filename: join(folder, 'new.raw'), size: 1024, atomic: true },
        job: { id, wait: false, 'auto-finalize': false, 'auto-dismiss': false },
      });
    await create('one');
    await peer.status('one', 'pending');
    expect(existsSync(join(folder, 'new.raw'))).toBe(false);
    await peer.call('job-cancel', { id: 'one' });
    await peer.status('one', 'concluded');
    expect(readdirSync(folder).filter((name) => name.includes('new.raw'))).toEqual([]);
    await create('two');
    await peer.status('two', 'pending');
    await peer.call('job-finalize', { id: 'two' });
    await peer.status('two', 'concluded');
    expect(existsSync(join(folder, 'new.raw'))).toBe(true);
    // A daemon that ends waits for nobody to finalize.
    await create('three');
    await peer.status('three', 'pending');
    await peer.call('shutdown', { drain: true });
    await new Promise((done) => process.once('exit', done));
  });
});
