/** kill -9 at random moments of mixed work: images stay sound, and the next daemon knows what became of each job. */
import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { Peer, startDaemon } from './support/daemon.js';

/** IMGD_KILLS=100 for the long form. */
const KILLS = Number(process.env.IMGD_KILLS ?? 10);
const SEED = Number(process.env.IMGD_SEED ?? 1 + Math.floor(Math.random() * 1e6));
const MiB = 1024 * 1024;
const folder = tempDir();
const socket = join(folder, 'd.sock');
const at = (name: string) => join(folder, name);

let state = SEED;
function random(below: number): number {
  state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff;
  return state % below;
}
const qemuImg = (...args: string[]) => run(reference.qemuImg!, args);

interface Planned {
  readonly method: string;
  readonly params: Record<string, unknown>;
  /** Its image is whole at every moment; one that is being made is not an image before its header is written. */
  readonly image: string;
  readonly makes: boolean;
  /** What can be seen in the image once it has concluded well. */
  readonly effect: () => boolean;
}

function info(image: string): Record<string, unknown> {
  return JSON.parse(qemuImg('info', '--output=json', image).stdout) as Record<string, unknown>;
}

/** Jobs that take from a few to some hundred milliseconds, each on images of its own. */
function plan(round: number, source: string): Planned[] {
  const name = (what: string) => at(`${round}-${what}.qcow2`);
  const convert = (what: string, more: Record<string, unknown>): Planned => ({
    method: 'image-convert',
    params: {
      sources: [{ filename: source, format: 'raw' }],
      target: { filename: name(what), format: 'qcow2' },
      ...more,
    },
    image: name(what),
    makes: true,
    effect: () => qemuImg('compare', '-f', 'raw', '-F', 'qcow2', source, name(what)).status === 0,
  });
  const old = (what: string, method: string, params: object, effect: (of: string) => boolean): Planned => {
    qemuImg('convert', '-f', 'raw', '-O', 'qcow2', source, name(what));
    const image = { filename: name(what), format: 'qcow2' };
    return {
      ...{ method, params: { image, ...params }, image: name(what), makes: false },
      effect: () => effect(name(what)),
    };
  };
  return [
    convert('slow', { 'rate-limit': (8 + random(64)) * MiB }),
    convert('resumed', {
      'rate-limit': 2 * MiB,
      compress: true,
      parallel: 1,
      resume: true,
      atomic: round % 2 === 0,
    }),
    convert('packed', { compress: true }),
    convert('queued', { 'rate-limit': 16 * MiB }),
    old('snap', 'image-snapshot', { action: 'create', snapshot: 's' }, (image) => 'snapshots' in info(image)),
    old('grown', 'image-resize', { size: 64 * MiB }, (image) => info(image)['virtual-size'] === 64 * MiB),
  ];
}

describeInterop('a daemon that is killed', () => {
  it(
    `leaves sound images and a journal that is right (${KILLS} kills, IMGD_SEED=${SEED})`,
    async () => {
      const source = at('source.raw');
      const bytes = Buffer.alloc(6 * MiB);
      for (let n = 0; n < bytes.length; n += 4) bytes.writeUInt32LE((n * 2_654_435_761) >>> 0, n);
      bytes.fill(0, 2 * MiB, 3 * MiB);
      writeFileSync(source, bytes);
      let daemon = await startDaemon(socket, ['--max-running', '4'], { real: true });
      let cutOff = 0;
      let resumed = 0;
      for (let round = 0; round < KILLS; round++) {
        const planned = plan(round, source);
        const peer = await Peer.connect(socket);
        await peer.call('events-subscribe', {});
        const ids = planned.map((_, index) => `r${round}-${index}`);
        for (const [index, { method, params }] of planned.entries()) {
          peer.send(method, { ...params, job: { id: ids[index], wait: false, 'auto-dismiss': false } });
        }
        // Not before the first is known: what no daemon has heard of no daemon can know.
        await peer.status(ids[0]!, 'created');
        await new Promise((done) => setTimeout(done, round % 8 === 7 ? 1400 + random(800) : random(250)));
        daemon.process.kill('SIGKILL');
        await daemon.exited;
        await peer.closed;
        const told = new Map<string, string>();
        for (const { data } of peer.events('JOB_STATUS_CHANGE')) {
          const { id, status } = data as { id: string; status: string };
          told.set(id, status);
        }

        daemon = await startDaemon(socket, ['--max-running', '4'], { real: true });
        const next = await Peer.connect(socket);
        const { result } = await next.call('query-jobs');
        const listed = new Map((result as { id: string }[]).map((job) => [job.id, job]));
        for (const [index, id] of ids.entries()) {
          const { image, makes, effect } = planned[index]!;
          const job = listed.get(id);
          if (job !== undefined) {
            cutOff++;
            expect(told.get(id)).not.toBe('concluded');
            expect(job).toMatchObject({ status: 'concluded', failure: { data: { kind: 'interrupted' } } });
            if (planned[index]!.params.resume === true) {
              const { params, method } = planned[index]!;
              const job = { id: `again-${round}`, 'rate-limit': 0 };
              const again = await next.call(method, { ...params, job });
              if ((again.result?.['resumed-from'] ?? 0) > 0) resumed++;
              expect(again.result).not.toHaveProperty('started-over');
              expect([id, effect()]).toEqual([id, true]);
            }
            await next.call('job-dismiss', { id });
          } else if (told.has(id)) expect([id, effect()]).toEqual([id, true]);
          if (!existsSync(image)) continue;
          const { status, stderr } = qemuImg('check', '-q', '-f', 'qcow2', image);
          // 3: leaks. 1 with an image that its job had only begun to make: no header yet.
          const unborn = makes && status === 1 && /not in qcow2 format|too small/i.test(stderr);
          expect([id, unborn || status === 0 || status === 3, stderr]).toEqual([id, true, stderr]);
        }
        for (const { image } of planned) rmSync(image, { force: true });
        next.socket.destroy();
      }
      expect(cutOff).toBeGreaterThan(0);
      if (KILLS >= 8) expect(resumed).toBeGreaterThan(0);
      const last = await Peer.connect(socket);
      expect((await last.call('query-jobs')).result).toEqual([]);
    },
    KILLS * 5_000 + 20_000,
  );
});
