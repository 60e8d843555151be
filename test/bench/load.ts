/** A daemon with many clients: what each of them notices, and what it costs. Needs no reference. */
import type { ChildProcess } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { rmSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { Client, rssMiB, say, sleep, startDaemon } from './daemon.js';
import { median, quantile } from './harness.js';

interface Load {
  readonly dist: string;
  readonly folder: string;
  /** Little of everything: shows that the bench works. */
  readonly short: boolean;
  readonly minutes: number;
  wanted(name: string): boolean;
}

const MiB = 1024 * 1024;

/** One daemon, and what the cases share. */
class Scene {
  readonly load: Load;
  readonly path: string;
  readonly daemon: ChildProcess;
  readonly client: Client;

  constructor(load: Load, path: string, daemon: ChildProcess, client: Client) {
    this.load = load;
    this.path = path;
    this.daemon = daemon;
    this.client = client;
  }

  get rss(): number {
    return rssMiB(this.daemon.pid!);
  }

  at(name: string): string {
    return join(this.load.folder, name);
  }

  async image(name: string, size = 1024 * MiB): Promise<string> {
    const filename = this.at(name);
    await this.client.call('image-create', { filename, format: 'qcow2', size });
    return filename;
  }

  /** Keeps so many conversions running until it is told to stop. */
  convert(count: number, mib: number): { stop(): Promise<number> } {
    const source = this.at(`load-${mib}.raw`);
    writeFileSync(source, '');
    for (let at = 0; at < mib; at++) writeFileSync(source, randomFillSync(Buffer.alloc(MiB)), { flag: 'a' });
    let going = true;
    let done = 0;
    const loop = async (n: number): Promise<void> => {
      const filename = this.at(`load-${n}.qcow2`);
      while (going) {
        await this.client.call('image-convert', {
          sources: [{ filename: source, format: 'raw' }],
          target: { filename, format: 'qcow2', cache: 'unsafe' },
        });
        done++;
      }
      rmSync(filename, { force: true });
    };
    const loops = Array.from({ length: count }, (_, n) => loop(n));
    return {
      async stop() {
        going = false;
        await Promise.all(loops);
        rmSync(source);
        return done;
      },
    };
  }
}

/** Pings until stopped; returns their times in ms. */
function pinger(client: Client): { stop(): Promise<number[]> } {
  const times: number[] = [];
  let going = true;
  const loop = (async () => {
    while (going) {
      const start = performance.now();
      await client.call('ping');
      times.push(performance.now() - start);
      await sleep(2);
    }
  })();
  return {
    async stop() {
      going = false;
      await loop;
      return times;
    },
  };
}

const ms = (value: number): string => `${value.toFixed(1)} ms`;
const figures = (times: readonly number[]): string =>
  `p50 ${ms(median(times))}, p99 ${ms(quantile(times, 0.99))}, worst ${ms(Math.max(...times))}`;

/** Calls that may wait for their answers; what cannot keep up with the rate shows as a lower one. */
const IN_FLIGHT = 512;

/** So many calls a second, by the clock: a late answer does not hold back the calls after it, and lateness counts. */
async function paced(
  clients: readonly Client[],
  rate: number,
  seconds: number,
  call: (client: Client) => Promise<unknown>,
): Promise<{ times: number[]; seconds: number }> {
  const times: number[] = [];
  let waiting = 0;
  let failure: unknown;
  const start = performance.now();
  for (let n = 0; n < rate * seconds; ) {
    const due = Math.min(rate * seconds, Math.floor(((performance.now() - start) / 1000) * rate) + 1);
    for (; n < due && waiting < IN_FLIGHT; n++) {
      const planned = start + (n / rate) * 1000;
      waiting++;
      call(clients[n % clients.length]!)
        .then(() => times.push(performance.now() - planned))
        .catch((error: unknown) => {
          failure = error;
        })
        .finally(() => waiting--);
    }
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  while (waiting > 0) await sleep(1);
  if (failure !== undefined) throw failure;
  return { times, seconds: (performance.now() - start) / 1000 };
}

/**
 * Small images, over and over: a virtual machine whose free memory its host takes back waits for the host with each new page, all
 * its threads with it, and that is not what is measured.
 */
const BESIDE_MIB = 64;

async function infoRate(scene: Scene): Promise<void> {
  const seconds = scene.load.short ? 2 : 20;
  const image = { image: { filename: await scene.image('rate.qcow2') } };
  const clients = await Promise.all(Array.from({ length: 16 }, () => Client.open(scene.path)));
  const info = (client: Client) => client.call('image-info', image);
  await paced(clients, 500, 1, info);
  const conversions = scene.convert(2, BESIDE_MIB);
  await sleep(200);
  const { times, seconds: took } = await paced(clients, 2000, seconds, info);
  const count = await conversions.stop();
  for (const client of clients) client.close();
  const rate = times.length / took;
  say(
    rate > 1900 && quantile(times, 0.99) < 20,
    'load: image-info while two conversions run',
    `${rate.toFixed(0)} a second from 16 connections, ${figures(times)}; ${count} conversions (goal 2000, p99 under 20 ms)`,
  );
}

/** A subscriber that counts lines and looks at nothing else. */
function subscriber(
  path: string,
  reads: boolean,
): Promise<{ lines(): number; ended(): boolean; socket: Socket }> {
  return new Promise((resolve, reject) => {
    let lines = 0;
    let ended = false;
    const socket = connect(path, () => {
      socket.write(
        '{"jsonrpc":"2.0","id":1,"method":"events-subscribe","params":{"filter":{"events":["JOB_STATUS_CHANGE"]}}}\n',
      );
    });
    socket.on('error', reject);
    socket.on('data', (chunk: Buffer) => {
      const first = lines === 0;
      for (let at = chunk.indexOf(10); at >= 0; at = chunk.indexOf(10, at + 1)) lines++;
      ended ||= chunk.includes('SUBSCRIPTION_ENDED');
      if (!first || lines === 0) return;
      if (!reads) socket.pause();
      resolve({ lines: () => lines, ended: () => ended, socket });
    });
  });
}

async function subscribers(scene: Scene): Promise<void> {
  const { short } = scene.load;
  const image = { image: { filename: await scene.image('subscribed.qcow2') } };
  const readers = await Promise.all(Array.from({ length: 180 }, () => subscriber(scene.path, true)));
  const deaf = await Promise.all(Array.from({ length: 20 }, () => subscriber(scene.path, false)));
  const before = scene.rss;
  const pings = pinger(await Client.open(scene.path));
  let peak = before;
  const watch = setInterval(() => (peak = Math.max(peak, scene.rss)), 100);
  // Four events each: more than a queue holds by far.
  const jobs = short ? 300 : 3000;
  await paced([scene.client], 100, jobs / 100, (client) => client.call('image-info', image));
  const wanted = jobs * 4;
  for (let n = 0; n < 200 && readers.some((reader) => reader.lines() - 1 < wanted); n++) await sleep(50);
  const times = await pings.stop();
  clearInterval(watch);
  const whole = readers.filter((reader) => reader.lines() - 1 === wanted).length;
  for (const { socket } of deaf) socket.resume();
  await sleep(500);
  const ended = deaf.filter((each) => each.ended()).length;
  for (const { socket } of [...readers, ...deaf]) socket.destroy();
  say(
    whole === 180 && (short || ended === 20) && quantile(times, 0.99) < 50,
    'load: 200 subscribers, 20 read nothing',
    `${whole} of 180 got all of ${wanted} events, ${ended} of 20 were let go; ping ${figures(times)}; memory +${(peak - before).toFixed(0)} MiB`,
  );
}

interface Listed {
  readonly id: string;
  readonly status: string;
  readonly 'queue-position'?: number;
}

async function queued(scene: Scene): Promise<void> {
  const mib = scene.load.short ? 1 : 32;
  const source = scene.at('queued.raw');
  writeFileSync(source, randomFillSync(Buffer.alloc(mib * MiB)));
  const { workers } = (await scene.client.call('query-status')) as { workers: { limit: number } };
  const count = 64 + workers.limit;
  const start = performance.now();
  const names = Array.from({ length: count }, (_, n) => scene.at(`queued-${n}.qcow2`));
  const jobs = names.map((filename) =>
    scene.client.call('image-convert', {
      sources: [{ filename: source, format: 'raw' }],
      target: { filename, format: 'qcow2', cache: 'unsafe' },
      // So that they are all there when they are counted.
      job: { 'rate-limit': (mib * MiB) / 2 },
    }),
  );
  const list = (await scene.client.call('query-jobs')) as Listed[];
  const positions = list.flatMap((job) => job['queue-position'] ?? []);
  const right = positions.length === 64 && positions.every((position, at) => position === at + 1);
  for (const { id } of list)
    await scene.client.call('job-set-speed', { id, speed: 0 }).catch(() => undefined);
  const pings = pinger(await Client.open(scene.path));
  const done = await Promise.allSettled(jobs);
  const times = await pings.stop();
  const good = done.filter(({ status }) => status === 'fulfilled').length;
  for (const name of [...names, source]) rmSync(name, { force: true });
  say(
    right && good === count,
    'load: 64 queued jobs',
    `${positions.length} queue, ${good} of ${count} end well in ${((performance.now() - start) / 1000).toFixed(1)} s; ping ${figures(times)}`,
  );
}

async function held(scene: Scene): Promise<void> {
  const count = scene.load.short ? 50 : 1000;
  const { client } = scene;
  const nodes = Array.from({ length: count }, (_, n) => `held-${n}`);
  for (const node of nodes) await scene.image(`${node}.qcow2`, 64 * MiB);
  const before = scene.rss;
  const start = performance.now();
  for (const node of nodes) {
    const file = { driver: 'file', filename: scene.at(`${node}.qcow2`) };
    await client.call('blockdev-add', { driver: 'qcow2', 'node-name': node, file });
  }
  const each = (performance.now() - start) / count;
  const whole = scene.rss - before;
  const times: number[] = [];
  for (const node of nodes) {
    const asked = performance.now();
    await client.call('image-info', { image: { node } });
    times.push(performance.now() - asked);
  }
  const asked = performance.now();
  const listed = (await client.call('query-named-block-nodes', { flat: true })) as object[];
  const listing = performance.now() - asked;
  for (const node of nodes) await client.call('blockdev-del', { 'node-name': node });
  await sleep(scene.load.short ? 500 : 5000);
  const after = scene.rss;
  for (const node of nodes) rmSync(scene.at(`${node}.qcow2`));
  say(
    listed.length >= count && quantile(times, 0.99) < 20 && whole < 300,
    `load: ${count} held images`,
    `${ms(each)} to add one, ${whole.toFixed(0)} MiB for all, ${(after - before).toFixed(0)} MiB left after; info ${figures(times)}; list ${ms(listing)}`,
  );
}

/** A bit of everything for some time: memory must not grow with it. */
async function memory(scene: Scene): Promise<void> {
  const seconds = scene.load.short ? 4 : scene.load.minutes * 60;
  const image = { image: { filename: await scene.image('mixed.qcow2') } };
  const before = scene.rss;
  const conversions = scene.convert(2, scene.load.short ? 16 : 128);
  const samples: number[] = [];
  const watch = setInterval(() => samples.push(scene.rss), 250);
  const clients = await Promise.all(Array.from({ length: 16 }, () => Client.open(scene.path)));
  const end = Date.now() + seconds * 1000;
  while (Date.now() < end) {
    const passing = await Client.open(scene.path);
    await passing.call('events-subscribe');
    await paced(clients, 300, 1, (client) => client.call('image-info', image));
    await passing.call('image-map', image);
    await passing.call('image-check', image);
    await passing.call('image-info', { image: { filename: '/nowhere' } }).catch(() => undefined);
    passing.close();
  }
  await conversions.stop();
  clearInterval(watch);
  for (const client of clients) client.close();
  await sleep(scene.load.short ? 500 : 10_000);
  const [first, second] = [samples.slice(0, samples.length / 2), samples.slice(samples.length / 2)];
  const growth = Math.max(...second) - Math.max(...first);
  const after = scene.rss;
  say(
    growth < 30 && after < before + 60,
    `load: memory over ${seconds} s`,
    `before ${before.toFixed(0)} MiB, peak of the first half ${Math.max(...first).toFixed(0)}, of the second ${Math.max(...second).toFixed(0)}, after ${after.toFixed(0)} (goals: growth under 30, after under +60)`,
  );
}

const cases: readonly [string, (scene: Scene) => Promise<void>][] = [
  ['load: image-info while two conversions run', infoRate],
  ['load: 200 subscribers, 20 read nothing', subscribers],
  ['load: 64 queued jobs', queued],
  ['load: 1000 held images', held],
  ['load: memory', memory],
];

/** Each in a daemon of its own. */
export async function loadCases(load: Load): Promise<void> {
  for (const [name, run] of cases) {
    if (!load.wanted(name)) continue;
    const path = join(load.folder, 'load.sock');
    const daemon = await startDaemon(load.dist, path, ['--max-connections', '512']);
    const ended = new Promise((resolve) => daemon.once('exit', resolve));
    try {
      const client = await Client.open(path);
      // Workers are made, and what starting needed is given back.
      await sleep(1500);
      await run(new Scene(load, path, daemon, client));
      client.close();
    } catch (error) {
      say(false, name, error instanceof Error ? error.message : String(error));
    } finally {
      daemon.kill('SIGTERM');
      await ended;
    }
  }
}
