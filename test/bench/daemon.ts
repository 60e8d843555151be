/** Cases that need a running daemon: latency of small requests, start-up of the client, memory, responsiveness. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { median, quantile, timed } from './harness.js';

interface Bench {
  readonly dist: string;
  readonly folder: string;
  readonly pairs: number;
  wanted(name: string): boolean;
}

/** A bare JSON-RPC client: one line a message, replies by id, the rest thrown away. */
export class Client {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, (reply: { result?: unknown; error?: { message: string } }) => void>();
  #next = 1;

  private constructor(socket: Socket) {
    this.#socket = socket;
    createInterface({ input: socket }).on('line', (line) => {
      const message = JSON.parse(line) as { id?: number };
      if (message.id !== undefined) {
        this.#waiting.get(message.id)?.(message as never);
        this.#waiting.delete(message.id);
      }
    });
  }

  static open(path: string): Promise<Client> {
    return new Promise((resolve, reject) => {
      const socket = connect(path, () => resolve(new Client(socket)));
      socket.on('error', reject);
    });
  }

  call(method: string, params: unknown = {}): Promise<unknown> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, (reply) =>
        reply.error === undefined ? resolve(reply.result) : reject(new Error(reply.error.message)),
      );
      this.#socket.write(`${JSON.stringify({ jsonrpc: '2.0', id, method, params })}\n`);
    });
  }

  close(): void {
    this.#socket.destroy();
  }
}

export function rssMiB(pid: number): number {
  return Number(/VmRSS:\s*(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024;
}

export const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

export async function startDaemon(
  dist: string,
  socket: string,
  flags: readonly string[] = [],
): Promise<ChildProcess> {
  const child = spawn(process.execPath, [join(dist, 'src/daemon/main.js'), '--socket', socket, ...flags], {
    stdio: 'ignore',
  });
  for (let i = 0; i < 200 && !existsSync(socket); i++) await sleep(20);
  return child;
}

export function say(ok: boolean, name: string, text: string): void {
  process.stdout.write(`${ok ? 'ok  ' : 'MISS'} ${name.padEnd(44)} ${text}\n`);
}

async function seconds(argv: readonly string[], count: number, env: NodeJS.ProcessEnv = {}): Promise<number> {
  const times: number[] = [];
  for (let i = 0; i < count + 2; i++) {
    const run = await timed(argv, { env: { ...process.env, ...env } });
    if (i >= 2) times.push(run.seconds);
  }
  return median(times);
}

export async function daemonCases(bench: Bench): Promise<void> {
  if (!bench.wanted('daemon')) return;
  const socket = join(bench.folder, 'imgd.sock');
  const image = join(bench.folder, 'info.qcow2');
  const raw = join(bench.folder, 'random.raw');
  execFileSync('qemu-img', ['create', '-f', 'qcow2', image, '1G'], { stdio: 'ignore' });
  const daemon = await startDaemon(bench.dist, socket);
  try {
    const client = await Client.open(socket);
    await sleep(1500);
    const idle = rssMiB(daemon.pid!);
    say(idle < 90, 'daemon: idle memory', `${idle.toFixed(1)} MiB (goal under 90)`);

    const info = { image: { filename: image } };
    const times: number[] = [];
    for (let i = 0; i < 220; i++) {
      const start = performance.now();
      await client.call('image-info', info);
      if (i >= 20) times.push(performance.now() - start);
    }
    const process_ = (await seconds(['qemu-img', 'info', image], 20)) * 1000;
    const ours = median(times);
    say(
      ours < process_ / 5,
      'daemon: info, connected client',
      `${ours.toFixed(2)} ms, reference process ${process_.toFixed(2)} ms, ${(process_ / ours).toFixed(1)}x (goal over 5)`,
    );

    const main = join(bench.dist, 'clients/qemu-img/main.js');
    const runs = 25;
    const bare = await seconds([process.execPath, '-e', '0'], runs);
    const connected = await seconds([process.execPath, main, '--connect', socket, 'info', image], runs);
    const embedded = await seconds([process.execPath, main, '--connect', 'none', 'info', image], runs);
    const over = (s: number) => (s - bare) * 1000;
    const at = `bare node ${(bare * 1000).toFixed(1)} ms`;
    say(
      over(connected) <= 15,
      'daemon: connected client adds',
      `${over(connected).toFixed(1)} ms (goal 15; ${at})`,
    );
    say(
      over(embedded) <= 80,
      'daemon: embedded client adds',
      `${over(embedded).toFixed(1)} ms (goal 80; ${at})`,
    );

    if (existsSync(raw)) {
      const conversions = [0, 1, 2, 3].map((i) =>
        client.call('image-convert', {
          sources: [{ filename: raw, format: 'raw' }],
          target: { filename: join(bench.folder, `four-${i}.qcow2`), format: 'qcow2' },
        }),
      );
      let busy = true;
      void Promise.allSettled(conversions).then(() => {
        busy = false;
      });
      const pinger = await Client.open(socket);
      const pings: number[] = [];
      while (busy) {
        const start = performance.now();
        await pinger.call('ping');
        pings.push(performance.now() - start);
        await sleep(2);
      }
      await Promise.all(conversions);
      pinger.close();
      const p99 = quantile(pings, 0.99);
      say(
        p99 < 20,
        'daemon: ping while four conversions run',
        `p50 ${median(pings).toFixed(2)} ms, p99 ${p99.toFixed(2)} ms, ${pings.length} pings (goal p99 under 20)`,
      );
      const peak = await timed(
        [
          process.execPath,
          main,
          '--connect',
          'none',
          'convert',
          '-O',
          'qcow2',
          raw,
          join(bench.folder, 'peak.qcow2'),
        ],
        {},
        true,
      );
      say(
        peak.peakMiB < 200,
        'daemon: peak memory of a conversion',
        `${peak.peakMiB.toFixed(0)} MiB (goal under 200)`,
      );
    }
    client.close();
  } finally {
    daemon.kill('SIGTERM');
  }
}
