/** Figures, printed and not judged: machines differ, and this one may be busy. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { tempDir } from '../support/reference.js';
import { fake, Peer, sleep, startDaemon } from './support/daemon.js';

const folder = tempDir();

function quantile(times: number[], q: number): string {
  const sorted = [...times].sort((a, b) => a - b);
  return `${sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))]!.toFixed(2)} ms`;
}

async function measure(count: number, once: () => Promise<unknown>): Promise<number[]> {
  const times: number[] = [];
  for (let n = 0; n < count; n++) {
    const from = performance.now();
    await once();
    times.push(performance.now() - from);
    // Spread over time, or all of them fall between two turns of the scheduler.
    await sleep(3);
  }
  return times;
}

describe('the daemon stays responsive', () => {
  it('prints how long ping and image-info take, idle and with four jobs that each want a core', async () => {
    const daemon = await startDaemon(join(folder, 'r.sock'), ['--log-level', 'info']);
    const peer = await Peer.connect(daemon.socket);
    const info = (): Promise<unknown> => peer.call('image-info', { image: { filename: 'echo' } });
    const ask = (): Promise<unknown> => peer.call('ping');
    const trim = (): void => {
      peer.received.length = 0;
    };
    await sleep(300);
    const rss = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${daemon.process.pid}/status`, 'utf8'))?.[1];
    await measure(50, info);
    trim();
    const lines = [`memory of the idle daemon: ${Math.round(Number(rss) / 1024)} MiB`];
    const report = (what: string, times: number[]): void =>
      void lines.push(`${what}: median ${quantile(times, 0.5)}, p99 ${quantile(times, 0.99)}`);
    report('ping, idle', await measure(300, ask));
    trim();
    report('image-info (fake), idle', await measure(300, info));
    trim();
    const burning = [1, 2, 3, 4].map((n) => peer.send('image-check', fake('burn:3000', { id: `burn-${n}` })));
    await sleep(200);
    report('ping, four burning jobs', await measure(300, ask));
    report('image-info (fake), four burning jobs', await measure(50, info));
    for (const id of burning) expect((await peer.answer(id)).result).toBeDefined();
    console.log(lines.join('\n'));
  });
});
