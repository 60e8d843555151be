/**
 * Go's go-qemu on the QMP socket, where asked for: `IMGD_GO=1 npx vitest run test/rpc/go-qemu.test.ts`, with Debian's golang-go and
 * golang-github-digitalocean-go-qemu-dev.
 */
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { run, tempDir } from '../support/reference.js';
import { serveQmp } from './support/qmp.js';

const folder = tempDir();

it.runIf(process.env.IMGD_GO === '1')(
  'go-qemu: a handshake, a node, an image by job followed to its end, and quit',
  async () => {
    const program = join(folder, 'client');
    const built = run('go', ['build', '-o', program, join(import.meta.dirname, 'go/main.go')], {
      env: { GO111MODULE: 'off', GOPATH: '/usr/share/gocode', GOCACHE: join(folder, 'cache') },
    });
    expect(built).toMatchObject({ status: 0, stderr: '' });
    const { daemon, socket, at } = await serveQmp(folder);
    const done = run(program, [socket, at('disk.qcow2')], { timeout: 20_000 });
    expect(done).toMatchObject({ status: 0, stderr: '' });
    const nodes = JSON.parse(done.stdout) as { 'node-name': string }[];
    expect(nodes.map((node) => node['node-name'])).toEqual(['disk', 'file']);
    expect(await daemon.exited).toBe(0);
  },
);
