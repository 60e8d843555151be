/** Conversions that a kill -9 cut off are gone on with. */
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { Peer, sleep, startDaemon } from './support/daemon.js';

const MiB = 1024 * 1024;
const folder = tempDir();
const at = (name: string) => join(folder, name);
const size = 24 * MiB;
const content = Buffer.alloc(size);
for (let n = 0; n < size; n += 4) content.writeUInt32LE((n * 2_654_435_761) >>> 0, n);
content.fill(0, 9 * MiB, 10 * MiB);
for (const name of ['source', 'changing', 'spoilt']) writeFileSync(at(`${name}.raw`), content);
const sha256 = createHash('sha256').update(content).digest('hex');

const jobs: Record<string, Record<string, unknown>> = {
  raw: { target: { filename: at('a.raw') } },
  qcow2: { target: { filename: at('b.qcow2'), format: 'qcow2' } },
  packed: {
    ...{ target: { filename: at('c.qcow2'), format: 'qcow2' }, compress: true },
    ...{ atomic: true, 'expect-sha256': sha256 },
  },
  changed: {
    sources: [{ filename: at('changing.raw'), format: 'raw' }],
    target: { filename: at('d.qcow2'), format: 'qcow2' },
  },
  spoilt: { target: { filename: at('e.raw') } },
  used: { target: { filename: at('f.raw') } },
};

describeInterop('a conversion that was cut off', () => {
  it('goes on from its checkpoint, bit for bit, and starts over where something has changed', async () => {
    const socket = at('d.sock');
    const first = await startDaemon(socket, ['--max-running', '8'], { real: true });
    const peer = await Peer.connect(socket);
    const params = (id: string) => ({
      sources: [{ filename: at('source.raw'), format: 'raw' }],
      ...jobs[id],
      resume: true,
    });
    for (const id of Object.keys(jobs)) {
      const job = { id, wait: false, 'rate-limit': 6 * MiB };
      expect((await peer.call('image-convert', { ...params(id), job })).result).toEqual({ job: id });
    }
    const marked = (): string[] =>
      readFileSync(`${socket}.journal`, 'utf8')
        .split('\n')
        .filter((line) => line.includes('"is":"mark"'))
        .map((line) => (JSON.parse(line.slice(9)) as { id: string }).id);
    for (let n = 0; n < 200 && new Set(marked()).size < Object.keys(jobs).length; n++) await sleep(20);
    first.process.kill('SIGKILL');
    await first.exited;
    expect(existsSync(at('c.qcow2'))).toBe(false);
    expect(statSync(at('a.raw')).size).toBe(size);
    expect(readFileSync(at('a.raw')).equals(content)).toBe(false);
    // Same content, other time: nobody can know that.
    utimesSync(at('changing.raw'), 1, 1);
    const other = readFileSync(at('e.raw'));
    other[1000] = 1 ^ other[1000]!;
    writeFileSync(at('e.raw'), other);

    const second = await startDaemon(socket, [], { real: true });
    const next = await Peer.connect(socket);
    // The daemon notes how it finds the targets; what changes one afterwards was not the conversion.
    const noted = () => readFileSync(`${socket}.journal`, 'utf8').split('"seen":').length - 1;
    for (let n = 0; n < 100 && noted() < Object.keys(jobs).length; n++) await sleep(20);
    utimesSync(at('f.raw'), 1, 1);
    await next.call('events-subscribe', {});
    const results = new Map<string, Record<string, unknown>>();
    for (const id of Object.keys(jobs)) {
      const { result, error } = await next.call('image-convert', { ...params(id), job: { id } });
      expect(error).toBeUndefined();
      results.set(id, result);
    }
    for (const id of ['raw', 'qcow2', 'packed']) {
      const from = results.get(id)!['resumed-from'] as number;
      expect([id, from > 0 && from < size, results.get(id)!['started-over']]).toEqual([id, true, undefined]);
      expect(results.get(id)!.written).toBeLessThanOrEqual(size - from);
    }
    expect(results.get('packed')!.sha256).toBe(sha256);
    expect(results.get('changed')).toMatchObject({ 'started-over': 'a source has changed' });
    expect(results.get('used')).toMatchObject({ 'started-over': 'the target was changed since' });
    expect(results.get('spoilt')).toMatchObject({ 'started-over': 'the target has other content' });
    const said = next.events('JOB_OUTPUT').map(({ data }) => (data as { text: string }).text);
    expect(said).toEqual([
      'imgd: cannot go on where it was cut off: a source has changed; starting over\n',
      'imgd: cannot go on where it was cut off: the target has other content; starting over\n',
      'imgd: cannot go on where it was cut off: the target was changed since; starting over\n',
    ]);

    for (const name of ['a.raw', 'e.raw', 'f.raw']) expect(readFileSync(at(name)).equals(content)).toBe(true);
    for (const name of ['b.qcow2', 'c.qcow2', 'd.qcow2']) {
      expect(run(reference.qemuImg!, ['compare', '-f', 'raw', at('source.raw'), at(name)]).status).toBe(0);
      expect([0, 3]).toContain(run(reference.qemuImg!, ['check', '-q', at(name)]).status);
    }
    // Once it is done there is nothing to go on from, whatever becomes of the target afterwards.
    copyFileSync(at('spoilt.raw'), at('a.raw'));
    const again = await next.call('image-convert', params('raw'));
    expect(again.result).toEqual({ size, written: expect.any(Number), zeros: expect.any(Number) });
    expect((await next.call('query-jobs')).result).toEqual([]);
    second.process.kill('SIGTERM');
    expect(await second.exited).toBe(0);
  }, 30_000);
});
