/** The SDK's examples do what they say. */
import { type ChildProcess, spawn } from 'node:child_process';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { beforeAll, expect, it, onTestFinished } from 'vitest';
import { tempDir } from '../support/reference.js';
import { dist, startDaemon } from './support/daemon.js';

const folder = tempDir();
const MiB = 1024 * 1024;
const examples = join(dist, 'clients/sdk/examples');

beforeAll(() => {
  for (const name of ['a.raw', 'b.raw']) {
    writeFileSync(join(folder, name), Buffer.alloc(8 * MiB, 'data'));
    truncateSync(join(folder, name), 16 * MiB);
  }
});

interface Run {
  readonly process: ChildProcess;
  readonly lines: string[];
  said(what: RegExp): Promise<void>;
  readonly ended: Promise<number | null>;
}

function example(name: string, ...args: string[]): Run {
  const child = spawn(process.execPath, [join(examples, `${name}.js`), ...args], {
    cwd: folder,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  onTestFinished(() => void child.kill('SIGKILL'));
  const lines: string[] = [];
  const watchers = new Set<() => void>();
  for (const stream of [child.stdout!, child.stderr!]) {
    createInterface({ input: stream }).on('line', (line) => {
      lines.push(line);
      for (const watcher of watchers) watcher();
    });
  }
  const ended = new Promise<number | null>((done) => child.on('close', (code) => done(code)));
  const said = (what: RegExp): Promise<void> =>
    new Promise((done, fail) => {
      const look = (): void => {
        if (lines.some((line) => what.test(line))) done();
      };
      watchers.add(look);
      look();
      void ended.then(() => fail(new Error(`it ended and said: ${lines.join('\n')}`)));
    });
  return { process: child, lines, said, ended };
}

it('convert shows progress, watch tells of it, cancel stops in time', async () => {
  const socket = join(folder, 'd.sock');
  await startDaemon(socket, [], { real: true });
  const watch = example('watch', socket);
  await watch.said(/^watching$/);

  const convert = example('convert', 'a.raw', 'out.qcow2', socket);
  expect(await convert.ended).toBe(0);
  expect(convert.lines.at(-2)).toMatch(/: 100\.0 %/);
  expect(convert.lines.at(-1)).toBe(`done: ${16 * MiB} bytes, ${8 * MiB} copied, ${8 * MiB} zeros`);
  await watch.said(/image-convert concluded$/);

  const failing = example('convert', 'none.raw', 'out2.qcow2', socket);
  expect(await failing.ended).toBe(1);
  expect(failing.lines).toEqual([expect.stringMatching(/^not-found: Could not open 'none\.raw'/)]);

  const cancel = example('cancel', 'a.raw', 'b.raw', '0.2', socket);
  expect(await cancel.ended).toBe(2);
  expect(cancel.lines).toEqual(['not known after 0.2 s']);
  await watch.said(/image-compare aborting$/);
  await watch.said(/image-compare concluded: /);

  watch.process.kill('SIGINT');
  expect(await watch.ended).toBe(0);
});
