/** QMP clients from npm, unmodified: a handshake, a node, an image by job followed to its end, and quit. */
import { createRequire } from 'node:module';
import type { Socket } from 'node:net';
import { describe, expect, it } from 'vitest';
import { tempDir } from '../support/reference.js';
import { type Served, serveQmp } from './support/qmp.js';

const folder = tempDir();
const require = createRequire(import.meta.url);

/** A `describe` that says so where its package is not installed; IMGD_REQUIRE_CLIENTS=1 makes that a failure. */
function describeClient(name: string, body: (found: unknown) => void): void {
  let found: unknown;
  try {
    found = require(name);
  } catch (error) {
    if (process.env.IMGD_REQUIRE_CLIENTS === '1') throw error;
    process.stderr.write(`\nSKIPPED (npm package ${name} is not installed): ${name} on the QMP socket\n`);
    describe.skip(name, () => it('is not installed', () => undefined));
    return;
  }
  describe(name, () => body(found));
}

interface Steps {
  execute(command: string, given?: object): Promise<unknown>;
  /** Resolves when the job has concluded, however the client tells. */
  concluded(job: string): Promise<void>;
}

/** What every client must be able to do. */
async function work({ execute, concluded }: Steps, { at, daemon }: Served): Promise<void> {
  const filename = at('disk.qcow2');
  await execute('blockdev-create', { 'job-id': 'f', options: { driver: 'file', filename, size: 0 } });
  await concluded('f');
  await execute('job-dismiss', { id: 'f' });
  await execute('blockdev-add', { driver: 'file', filename, 'node-name': 'file' });
  const options = { driver: 'qcow2', file: 'file', size: 16 * 2 ** 20 };
  await execute('blockdev-create', { 'job-id': 'q', options });
  await concluded('q');
  expect(await execute('query-jobs')).toEqual([
    { id: 'q', type: 'create', status: 'concluded', 'current-progress': 1, 'total-progress': 1 },
  ]);
  await execute('job-dismiss', { id: 'q' });
  await execute('blockdev-add', { driver: 'qcow2', file: 'file', 'node-name': 'disk' });
  const nodes = (await execute('query-named-block-nodes')) as { 'node-name': string; image: object }[];
  expect(nodes.map((node) => node['node-name'])).toEqual(['disk', 'file']);
  expect(nodes[0]!.image).toMatchObject({ format: 'qcow2', 'virtual-size': 16 * 2 ** 20 });
  await execute('quit');
  expect(await daemon.exited).toBe(0);
}

/** Answers once it has been seen that often, also where that was before. */
function counter() {
  let seen = 0;
  const waiting: { at: number; done: () => void }[] = [];
  return {
    add() {
      seen++;
      for (const { at, done } of waiting) if (seen >= at) done();
    },
    until: (at: number) =>
      new Promise<void>((done) => {
        if (seen >= at) done();
        else waiting.push({ at, done });
      }),
  };
}

interface NodeQemu {
  readonly QMPClient: new (options: {
    socketPath: string;
    oob?: boolean;
  }) => {
    connect(): Promise<void>;
    execute(command: string, given?: object): Promise<unknown>;
    queryJobs(): Promise<unknown>;
    jobDismiss(id: string): Promise<void>;
    close(): Promise<void>;
    on(event: string, listener: (data: { id: string; status: string }) => void): void;
  };
}

describeClient('node-qemu', (found) => {
  const { QMPClient } = found as NodeQemu;

  it.each([false, true])('works from the handshake to quit (oob: %s)', async (oob) => {
    const served = await serveQmp(folder);
    const client = new QMPClient({ socketPath: served.socket, oob });
    await client.connect();
    const concluded = new Map<string, ReturnType<typeof counter>>();
    const of = (job: string) => concluded.get(job) ?? concluded.set(job, counter()).get(job)!;
    client.on('JOB_STATUS_CHANGE', ({ id, status }) => {
      if (status === 'concluded') of(id).add();
    });
    await expect(client.execute('no-such-command')).rejects.toThrow('CommandNotFound');
    expect(await client.queryJobs()).toEqual([]);
    await work(
      { execute: (command, given) => client.execute(command, given), concluded: (job) => of(job).until(1) },
      served,
    );
    await client.close();
  });
});

interface QemuQmp extends Omit<Socket, 'connect'> {
  execute(command: string, given: object, callback: (error: Error | null, result: unknown) => void): void;
  connect(path: string, callback: (error: Error | null) => void): void;
}

describeClient('qemu-qmp', (found) => {
  const Client = found as new () => QemuQmp;

  it('works from the handshake to quit', async () => {
    const served = await serveQmp(folder);
    const client = new Client();
    await new Promise<void>((done, fail) => {
      client.connect(served.socket, (error) => (error ? fail(error) : done()));
    });
    // It has taken the version out of the greeting, which must have come alone.
    expect(client).toMatchObject({ version: { qemu: { major: 10 } }, capabilities: ['oob'] });
    // It tells the names of events and no more: each job here has six, of which `concluded` is the fifth.
    const changes = counter();
    client.on('job_status_change', () => changes.add());
    let jobs = 0;
    const execute = (command: string, given?: object) =>
      new Promise<unknown>((done, fail) => {
        client.execute(command, given ?? {}, (error, result) => (error ? fail(error) : done(result)));
      });
    await expect(execute('no-such-command')).rejects.toThrow('has not been found');
    await work({ execute, concluded: () => changes.until(6 * jobs++ + 5) }, served);
    client.destroy();
  });
});
