import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { tempDir } from '../support/reference.js';
import { fake, Peer, type RunningDaemon, startDaemon } from './support/daemon.js';

const folder = tempDir();

async function kill(daemon: RunningDaemon): Promise<void> {
  daemon.process.kill('SIGKILL');
  await daemon.exited;
}

describe('after kill -9', () => {
  it('tells of the jobs that were cut off: in the list, to a retry, in the log and as events', async () => {
    const socket = join(folder, 'a.sock');
    const first = await startDaemon(socket, ['--max-running', '1']);
    const peer = await Peer.connect(socket);
    await peer.call('image-check', fake('steps:2:10:0', { id: 'finished' }));
    await peer.call('image-check', fake('deaf', { id: 'ran', wait: false }));
    await peer.call('image-check', fake('deaf', { id: 'queued', wait: false, 'auto-dismiss': false }));
    await peer.call('image-check', fake('deaf', { id: 'removed', wait: false }));
    await peer.call('job-cancel', { id: 'removed' });
    await peer.call('image-info', fake('steps:1:1:0', { id: 'looked' }));
    await kill(first);

    const second = await startDaemon(socket, []);
    const next = await Peer.connect(socket);
    const jobs = (await next.call('query-jobs')).result;
    expect(jobs).toMatchObject([
      {
        id: 'ran',
        status: 'concluded',
        type: 'image-check',
        error: 'the daemon was ended while this job ran',
      },
      { id: 'queued', error: 'the daemon was ended before this job began' },
    ]);
    expect(jobs[0].failure).toMatchObject({ code: -32036, data: { kind: 'interrupted', job: 'ran' } });
    const cut = second.log().filter(({ msg }) => msg === 'job was cut off');
    expect(cut).toMatchObject([
      { job: 'ran', began: true },
      { job: 'queued', began: false },
    ]);
    expect(cut[0]!.owner).toMatch(/^uid \d+, pid \d+$/);
    await next.call('events-subscribe', { since: 0 });
    expect((await next.status('ran', 'concluded')).data).toMatchObject({
      error: { data: { kind: 'interrupted' } },
    });

    // A retry is the same job: it is told what became of it, and the id is free afterwards.
    const other = await next.call('image-check', fake('steps:1:1:0', { id: 'ran' }));
    expect(other.error).toMatchObject({ data: { kind: 'job-exists' } });
    const retry = await next.call('image-check', fake('deaf', { id: 'ran' }));
    expect(retry.error).toMatchObject({ data: { kind: 'interrupted' } });
    expect((await next.call('image-check', fake('steps:1:1:0', { id: 'ran' }))).result).toEqual({ total: 1 });
    // One that is not dismissed by itself stays, over another crash too.
    expect((await next.call('job-wait', { id: 'queued' })).error).toMatchObject({ code: -32036 });
    await kill(second);
    await startDaemon(socket, []);
    const last = await Peer.connect(socket);
    expect((await last.call('query-jobs')).result).toMatchObject([{ id: 'queued' }]);
    await last.call('job-dismiss', { id: 'queued' });
    expect((await last.call('query-jobs')).result).toEqual([]);
  });

  it('a daemon that ended by itself has cut off nothing, and a bad journal stops none', async () => {
    const socket = join(folder, 'b.sock');
    const first = await startDaemon(socket, ['--journal', join(folder, 'b', 'journal')]);
    const peer = await Peer.connect(socket);
    await peer.call('image-check', fake('steps:1000:10:10', { id: 'long', wait: false }));
    first.process.kill('SIGTERM');
    expect(await first.exited).toBe(0);
    writeFileSync(join(folder, 'b2'), 'not a journal\n');
    const second = await startDaemon(socket, ['--journal', join(folder, 'b', 'journal')]);
    expect((await (await Peer.connect(socket)).call('query-jobs')).result).toEqual([]);
    second.process.kill('SIGTERM');
    await second.exited;
    const third = await startDaemon(socket, ['--journal', join(folder, 'b2')]);
    expect(third.log()).toContainEqual(
      expect.objectContaining({ level: 'warn', journal: join(folder, 'b2') }),
    );
    const without = await startDaemon(join(folder, 'c.sock'), ['--journal', 'none']);
    expect(without.log().at(-1)).toMatchObject({ msg: 'listening' });
    expect(existsSync(join(folder, 'c.sock.journal'))).toBe(false);
  });
});
