/** Images in use: by QEMU while we want them, and by our daemon while the reference wants them. */
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { qemuImg } from '../support/client.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { Peer, type RunningDaemon, sleep, startDaemon } from './support/daemon.js';

const folder = tempDir();
const at = (name: string) => join(folder, name);

describeInterop('images that somebody else has open', () => {
  let daemon: RunningDaemon;
  beforeAll(async () => {
    daemon = await startDaemon(at('held.sock'), [], { real: true });
  });
  afterAll(() => void daemon.process.kill('SIGKILL'));

  it.each(['qcow2', 'raw'])(
    'a %s image that qemu-io writes: refused as qemu-img refuses it, but with -U',
    async (format) => {
      const image = at(`theirs.${format}`);
      run(reference.qemuImg!, ['create', '-q', '-f', format, image, '4M']);
      const holder = spawn(reference.qemuIo!, ['-f', format, image], { stdio: ['pipe', 'pipe', 'ignore'] });
      try {
        // Its prompt says that the image is open.
        await new Promise((resolve) => holder.stdout.once('data', resolve));
        for (const command of [
          ['info', '-f', format, image],
          ['check', '-f', format, image],
          ['map', '-f', format, image],
          ['convert', '-f', format, '-O', 'raw', image, at('copy.raw')],
          ['compare', '-f', format, '-F', format, image, image],
        ]) {
          const expected = run(reference.qemuImg!, command);
          expect(qemuImg(command), command.join(' ')).toEqual(expected);
          const through = qemuImg(command, { env: { IMGD_SOCKET: daemon.socket } });
          expect(through, `${command.join(' ')}, through the daemon`).toEqual(expected);
        }
        for (const socket of ['', daemon.socket]) {
          const allowed = qemuImg(['info', '-U', '-f', format, image], { env: { IMGD_SOCKET: socket } });
          expect(allowed).toMatchObject({ status: 0, stderr: '' });
        }
        const peer = await Peer.connect(daemon.socket);
        const refused = await peer.call('image-check', { image: { filename: image, format: 'qcow2' } });
        if (format === 'qcow2') {
          expect(refused.error?.data).toMatchObject({
            kind: 'locked',
            holder: { pid: holder.pid, command: 'qemu-io' },
          });
        }
      } finally {
        holder.kill('SIGKILL');
      }
    },
  );

  it('the target of a conversion in the daemon: the reference is refused, but with -U', async () => {
    writeFileSync(at('source.raw'), Buffer.alloc(16 << 20, 5));
    const peer = await Peer.connect(daemon.socket);
    const job = await peer.call('image-convert', {
      cwd: folder,
      sources: [{ filename: 'source.raw', format: 'raw' }],
      target: { filename: 'ours.qcow2', format: 'qcow2' },
      'rate-limit': 1 << 20,
      job: { id: 'slow', wait: false },
    });
    expect(job.error).toBeUndefined();
    const theirs = (...flags: string[]) => run(reference.qemuImg!, ['info', ...flags, at('ours.qcow2')]);
    const locked = `Failed to get shared "write" lock\nIs another process using the image [${at('ours.qcow2')}]?\n`;
    for (let i = 0; i < 100 && !theirs().stderr.includes('lock'); i++) await sleep(50);
    expect(theirs()).toMatchObject({
      status: 1,
      stderr: `qemu-img: Could not open '${at('ours.qcow2')}': ${locked}`,
    });
    expect(theirs('-U').status).toBe(0);
    expect(run(reference.qemuIo!, ['-c', 'write 0 512', at('ours.qcow2')]).status).toBe(1);
    // Our own client and a second job are refused likewise.
    expect(qemuImg(['info', at('ours.qcow2')]).stderr).toContain(locked);
    await peer.call('job-cancel', { id: 'slow' });
    await peer.call('job-wait', { id: 'slow' });
    const source = run(reference.qemuIo!, ['-f', 'raw', '-c', 'write 0 512', at('source.raw')]);
    expect(source.status).toBe(0);
  });
});
