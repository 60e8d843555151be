/**
 * `npm run demo [-- FILE]`: the main job on a real image, end to end. A daemon, the qemu-img client, and a second client
 * that watches; raw -> qcow2 -> compressed qcow2 -> raw, one conversion cancelled half way, and equal checksums at the end.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  copyFileSync,
  createReadStream,
  existsSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const GiB = 2 ** 30;
const dist = fileURLToPath(new URL('../../', import.meta.url));
const qemuImg = join(dist, 'clients/qemu-img/main.js');
const folder = mkdtempSync(join(tmpdir(), 'imgd-demo-'));
const socket = join(folder, 'imgd.sock');
const at = (name: string) => join(folder, name);

function say(text: string): void {
  process.stdout.write(`\n== ${text}\n`);
}

/** mke2fs takes minutes for tens of thousands of small files in one folder. */
const SMALLEST = 64 * 1024;

/** Files of this machine, some hundred MiB of them: what Node itself is installed from, and the system's programs. */
function* realFiles(limit: number): Generator<string> {
  const roots = [dirname(dirname(process.execPath)), '/usr/bin', '/usr/lib', '/usr/share'];
  const seen = new Set<string>();
  let bytes = 0;
  for (const stack of roots.map((root) => [root])) {
    while (stack.length > 0) {
      const path = stack.pop()!;
      try {
        const real = realpathSync(path);
        if (seen.has(real)) continue;
        seen.add(real);
        const stat = statSync(real);
        if (stat.isDirectory()) stack.push(...readdirSync(real).map((name) => join(real, name)));
        else if (stat.isFile() && stat.size >= SMALLEST && stat.size < limit) {
          if (bytes + stat.size > limit) return;
          bytes += stat.size;
          yield real;
        }
      } catch {
        // unreadable, or gone: another file will do
      }
    }
  }
}

/** A real image of at least 1 GiB: a file system with files of this machine, or, without mke2fs, those files end to end. */
function makeImage(path: string): string {
  const size = 1.25 * GiB;
  const content = 0.8 * GiB;
  const mke2fs = ['/sbin/mke2fs', '/usr/sbin/mke2fs'].find((program) => existsSync(program));
  closeSync(openSync(path, 'w'));
  if (mke2fs !== undefined) {
    const tree = at('tree');
    mkdirSync(tree);
    let index = 0;
    for (const file of realFiles(content)) copyFileSync(file, join(tree, `${index++}-${basename(file)}`));
    const made = spawnSync(mke2fs, ['-q', '-t', 'ext4', '-d', tree, path, `${Math.floor(size / 1024)}k`]);
    rmSync(tree, { recursive: true });
    if (made.status === 0) return `an ext4 file system with ${index} files of this machine`;
  }
  const fd = openSync(path, 'r+');
  ftruncateSync(fd, size);
  let offset = 0;
  let index = 0;
  for (const file of realFiles(content)) {
    const bytes = readFileSync(file);
    writeSync(fd, bytes, 0, bytes.byteLength, offset);
    offset = Math.ceil((offset + bytes.byteLength) / 4096) * 4096;
    index++;
  }
  closeSync(fd);
  return `${index} files of this machine, end to end (no mke2fs here)`;
}

function sha256(path: string): Promise<string> {
  return new Promise((resolveHash, reject) => {
    const hash = createHash('sha256');
    createReadStream(path, { highWaterMark: 1 << 20 })
      .on('data', (chunk) => hash.update(chunk))
      .on('error', reject)
      .on('end', () => resolveHash(hash.digest('hex')));
  });
}

const sleep = (ms: number) => new Promise((wake) => setTimeout(wake, ms));

async function startDaemon(): Promise<ChildProcess> {
  const child = spawn(
    process.execPath,
    [join(dist, 'src/daemon/main.js'), '--socket', socket, '--log-level', 'warn'],
    {
      stdio: ['ignore', 'inherit', 'inherit'],
    },
  );
  for (let i = 0; i < 250; i++) {
    if (existsSync(socket)) return child;
    if (child.exitCode !== null) break;
    await sleep(20);
  }
  throw new Error('the daemon did not start');
}

interface WatchedEvent {
  readonly event: string;
  readonly data: {
    readonly id?: string;
    readonly status?: string;
    readonly done?: number;
    readonly total?: number;
    readonly rate?: number;
  };
}

/** The second client: subscribes to every job's state and progress, and keeps what it saw. */
async function watch(onEvent: (event: WatchedEvent) => void): Promise<() => void> {
  const connection = connect(socket);
  await new Promise((ready, failed) => connection.once('connect', ready).once('error', failed));
  createInterface({ input: connection }).on('line', (line) => {
    const message = JSON.parse(line) as { method?: string; params?: WatchedEvent };
    if (message.method === 'event' && message.params !== undefined) onEvent(message.params);
  });
  connection.write(
    `${JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'events-subscribe', params: { filter: { events: ['JOB_STATUS_CHANGE', 'JOB_PROGRESS'] } } })}\n`,
  );
  return () => connection.destroy();
}

/** Runs our qemu-img on the daemon, its output straight to the terminal; gives the exit status. */
function client(args: string[], onStart?: (child: ChildProcess) => void): Promise<number> {
  process.stdout.write(`$ qemu-img ${args.map((word) => word.replace(`${folder}/`, '')).join(' ')}\n`);
  const started = performance.now();
  const child = spawn(process.execPath, [qemuImg, '--connect', socket, ...args], { stdio: 'inherit' });
  onStart?.(child);
  return new Promise((done, failed) => {
    child.on('error', failed);
    child.on('exit', (status, signal) => {
      const how = signal === null ? `exit ${status}` : `ended by ${signal}`;
      process.stdout.write(`   ${how}, ${((performance.now() - started) / 1000).toFixed(2)} s\n`);
      done(status ?? 1);
    });
  });
}

async function must(args: string[]): Promise<void> {
  const status = await client(args);
  if (status !== 0) throw new Error(`qemu-img ${args[0]} failed`);
}

async function main(): Promise<void> {
  const given = process.argv[2];
  let source: string;
  if (given !== undefined) {
    source = resolve(given);
    if (!existsSync(source)) throw new Error(`there is no file ${given}`);
    say(`Your image: ${source}`);
  } else {
    source = at('disk.raw');
    say('Making a real disk image');
    process.stdout.write(`${makeImage(source)}, ${(statSync(source).size / GiB).toFixed(2)} GiB\n`);
  }

  say('Starting the daemon, and a second client that watches');
  const daemon = await startDaemon();
  process.stdout.write(`imgd has process id ${daemon.pid}, socket ${socket}\n`);
  const states: string[] = [];
  let samples = 0;
  let victim: { child: ChildProcess; job: string | undefined } | undefined;
  let cancelledAt = 0;
  const stopWatching = await watch(({ event, data }) => {
    if (event === 'JOB_STATUS_CHANGE') {
      states.push(`${data.id}: ${data.status}`);
      if (victim !== undefined && victim.job === undefined && data.status === 'running') victim.job = data.id;
      return;
    }
    samples++;
    const { done = 0, total = 0 } = data;
    if (victim?.job === data.id && cancelledAt === 0 && total > 0 && done >= total / 2) {
      cancelledAt = (100 * done) / total;
      victim?.child.kill('SIGINT');
    }
  });
  try {
    say('raw -> qcow2 -> compressed qcow2 -> raw, through the daemon');
    const raw = given === undefined ? ['-f', 'raw'] : [];
    await must(['info', ...raw, source]);
    await must(['convert', '-p', ...raw, '-O', 'raw', source, at('before.raw')]);
    await must(['convert', '-p', ...raw, '-O', 'qcow2', source, at('plain.qcow2')]);
    await must(['convert', '-p', '-f', 'qcow2', '-O', 'qcow2', '-c', at('plain.qcow2'), at('small.qcow2')]);
    await must(['convert', '-p', '-f', 'qcow2', '-O', 'raw', at('small.qcow2'), at('after.raw')]);
    await must(['check', at('small.qcow2')]);
    await must(['info', at('small.qcow2')]);

    say('One more conversion, cancelled half way with Ctrl-C');
    await client(
      ['convert', '-p', '-r', '512M', '-f', 'qcow2', '-O', 'raw', at('small.qcow2'), at('never.raw')],
      (child) => {
        victim = { child, job: undefined };
      },
    );
    process.stdout.write(
      cancelledAt > 0
        ? `Interrupted at ${cancelledAt.toFixed(0)} %, ${existsSync(at('never.raw')) ? 'a file was left behind' : 'nothing left behind'}\n`
        : 'It was done before it could be interrupted: the image is too small for that.\n',
    );

    say('What the second client saw');
    for (const state of states) process.stdout.write(`  ${state}\n`);
    process.stdout.write(`  and ${samples} samples of progress\n`);

    say('Checksums of the guest content');
    const before = await sha256(at('before.raw'));
    const after = await sha256(at('after.raw'));
    process.stdout.write(`before ${before}\nafter  ${after}\n`);
    if (before !== after) throw new Error('the checksums differ');
    process.stdout.write('equal\n');
  } finally {
    stopWatching();
    const ended = new Promise((done) => daemon.once('exit', done));
    daemon.kill('SIGTERM');
    await ended;
    process.stdout.write(`daemon ended, socket ${existsSync(socket) ? 'still there' : 'removed'}\n`);
  }
}

try {
  await main();
} catch (error) {
  process.stderr.write(`demo: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}
