/**
 * Hostile clients on every listener of a daemon, many at once, while others are served: nothing they send ends it, holds it up,
 * stays in its memory or keeps a connection. `IMGD_FUZZ_SECONDS=300` for longer, `IMGD_FUZZ_START=N` for other attacks,
 * `IMGD_FUZZ_SEED=N` for one alone.
 */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { connect as connectSocket, type Socket } from 'node:net';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { type Client, connect } from '../../clients/sdk/index.js';
import { realMain, startDaemon } from '../rpc/support/daemon.js';
import { tempDir } from '../support/reference.js';
import { type Access, attack, type Language, type Step } from './protocol-attacks.js';
import { Random } from './random.js';

const seconds = Number(process.env.IMGD_FUZZ_SECONDS ?? 3);
const only = process.env.IMGD_FUZZ_SEED;
const start = Number(process.env.IMGD_FUZZ_START ?? 0);

/** Attacks at once. */
const AT_ONCE = 12;
/** What a served client may have to wait for an answer, with the machine as busy as this test makes it. */
const PATIENCE_MS = 5000;
const MiB = 1024 * 1024;
/** Memory that a daemon may have more after than before: what it remembers of events and outcomes, and V8's slack. */
const KEPT = 200 * MiB;

const folder = tempDir();
const token = 'correct-horse-battery-staple';

interface Target {
  readonly language: Language;
  readonly to: { readonly path: string } | { readonly host: string; readonly port: number };
}

const pause = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

/** Plays the steps; ends when they have been played or the peer has had enough. */
async function play(target: Target, steps: readonly Step[]): Promise<void> {
  const socket: Socket = connectSocket({ ...target.to, allowHalfOpen: true });
  socket.on('error', () => undefined);
  const closed = new Promise<void>((done) => socket.on('close', () => done()));
  socket.on('end', () => socket.end());
  socket.resume();
  for (const step of steps) {
    if (socket.destroyed) break;
    if (step.do === 'write') {
      const taken = socket.write(step.bytes);
      if (!taken) {
        await Promise.race([closed, new Promise((done) => socket.once('drain', done)), pause(100)]);
        socket.removeAllListeners('drain');
      }
    } else if (step.do === 'drip') {
      for (const byte of step.bytes) {
        socket.write(Uint8Array.of(byte));
        await pause(step.ms);
      }
    } else if (step.do === 'wait') await Promise.race([closed, pause(step.ms)]);
    else if (step.do === 'deafen') socket.pause();
    else if (step.do === 'read') socket.resume();
    else if (step.do === 'half-close') socket.end();
    else if ('port' in target.to) socket.resetAndDestroy();
    else socket.destroy();
  }
  socket.destroy();
  await closed;
}

/** A client that must be served all the time. Returns how often it was. */
async function innocent(client: Client, going: () => boolean): Promise<{ served: number; slowest: number }> {
  const image = { filename: join(folder, 'innocent.qcow2') };
  const expected = await client.imageInfo({ image });
  let [served, slowest] = [0, 0];
  while (going()) {
    const before = performance.now();
    const signal = AbortSignal.timeout(PATIENCE_MS);
    // The same each time, and what was asked for.
    expect(await client.imageInfo({ image }, { signal })).toEqual(expected);
    expect((await client.queryVersion({}, { signal })).version).toBe(client.version);
    slowest = Math.max(slowest, performance.now() - before);
    served++;
    await pause(10);
  }
  return { served, slowest };
}

function rssOf(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/VmRSS:\s*(\d+) kB/.exec(status)![1]) * 1024;
}

it(
  'no hostile client ends the daemon, holds up the others, or stays in memory',
  async () => {
    const tokens = join(folder, 'tokens');
    writeFileSync(tokens, `${token}\n`, { mode: 0o600 });
    const help = execFileSync(process.execPath, [realMain, '--help'], { encoding: 'utf8' });
    const qmp = help.includes('--qmp-socket') ? join(folder, 'qmp.sock') : undefined;
    const path = join(folder, 'd.sock');
    const image = join(folder, 'innocent.qcow2');
    const flags = ['--listen', '127.0.0.1:0', '--token-file', tokens, '--max-message', '65536'];
    if (qmp !== undefined) flags.push('--qmp-socket', qmp);
    const daemon = await startDaemon(path, [...flags, '--log-level', 'info'], { real: true });
    const pid = daemon.process.pid!;
    const addresses = daemon.log().find((line) => line.msg === 'listening')!.addresses as string[];
    const url = addresses.find((address) => address.startsWith('ws:'))!;
    const { host, hostname, port } = new URL(url);
    const access: Access = { host, token };
    const tcp = { host: hostname, port: Number(port) };
    const targets: Target[] = [
      { language: 'json-rpc', to: { path } },
      { language: 'http', to: { path } },
      { language: 'http', to: tcp },
      { language: 'websocket', to: tcp },
      ...(qmp === undefined ? [] : [{ language: 'qmp' as const, to: { path: qmp } }]),
    ];

    const patient = { reconnect: false } as const;
    const clients = [await connect({ socket: path, ...patient }), await connect({ url, token, ...patient })];
    await clients[0]!.imageCreate({ filename: image, format: 'qcow2', size: 64 * MiB });

    let going = true;
    const served = clients.map((client) => innocent(client, () => going));
    // One that fails must end the attacks.
    for (const each of served) each.catch(() => (going = false));
    const first = rssOf(pid);
    let peak = first;
    const watch = setInterval(() => (peak = Math.max(peak, rssOf(pid))), 100);

    let seed = start;
    const end = Date.now() + seconds * 1000;
    const attacker = async (): Promise<void> => {
      while (going && Date.now() < end) {
        const mine = only === undefined ? seed++ : Number(only);
        const target = targets[mine % targets.length]!;
        await play(target, attack(new Random(mine), target.language, access));
        if (daemon.process.exitCode !== null) throw new Error(`the daemon ended at about attack ${mine}`);
        if (only !== undefined) return;
      }
    };
    await Promise.all(Array.from({ length: only === undefined ? AT_ONCE : 1 }, attacker));
    going = false;
    clearInterval(watch);

    const results = await Promise.all(served);
    const about = `attacks ${start} to ${seed}`;
    process.stdout.write(
      `protocol fuzz: ${about} on ${targets.length} listeners, ${results.map(({ served, slowest }) => `${served} times served (slowest ${slowest.toFixed(0)} ms)`).join(', ')}, ` +
        `memory ${(first / MiB).toFixed(0)} MiB, peak ${(peak / MiB).toFixed(0)}\n`,
    );
    for (const { served } of results) expect(served).toBeGreaterThan(only === undefined ? 5 : 0);
    // Workers' heaps and what is not collected yet, mostly: what counts is that it comes back, see below.
    expect(peak, about).toBeLessThan(first + 1024 * MiB);

    // All that the attackers had is given back: connections, descriptors, subscriptions, jobs.
    const [client] = clients as [Client];
    const settled = async (): Promise<Record<string, unknown>> => {
      const { connections, subscriptions } = await client.queryStatus();
      const jobs = (await client.queryJobs()).filter(({ status }) => status !== 'concluded').length;
      return { connections, subscriptions, jobs };
    };
    const wanted = { connections: 2, subscriptions: 0, jobs: 0 };
    let last = await settled();
    for (let n = 0; n < 100 && JSON.stringify(last) !== JSON.stringify(wanted); n++) {
      await pause(50);
      last = await settled();
    }
    expect(last, about).toEqual(wanted);
    let rss = rssOf(pid);
    for (let n = 0; n < 150 && rss > first + KEPT; n++) {
      await pause(200);
      rss = rssOf(pid);
    }
    expect(rss, about).toBeLessThan(first + KEPT);
    const sockets = (): number => {
      const links = readdirSync(`/proc/${pid}/fd`).map((fd) => {
        try {
          return readlinkSync(`/proc/${pid}/fd/${fd}`);
        } catch {
          return '';
        }
      });
      return links.filter((link) => link.startsWith('socket:')).length;
    };
    // Its listeners, the two clients, and what its stderr may be.
    expect(sockets(), about).toBeLessThan(12);
    const bad = daemon.log().filter(({ level }) => (level as number) >= 50);
    expect(bad, about).toEqual([]);
    for (const each of clients) each.close();
    daemon.process.kill('SIGTERM');
    expect(await daemon.exited).toBe(0);
  },
  seconds * 1000 + 60_000,
);
