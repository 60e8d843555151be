import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ThrottleGroup } from '../../src/engine/node/throttle-group.js';

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'performance'] }));
afterEach(() => void vi.useRealTimers());

const group = (limits: Record<string, number>, signal = new AbortController().signal) =>
  new ThrottleGroup({ 'qom-type': 'throttle-group', id: 'g', limits }, signal);

/** Milliseconds after which each of the requests passes. */
async function times(
  of: ThrottleGroup,
  requests: readonly (readonly ['read' | 'write', number])[],
): Promise<number[]> {
  const start = performance.now();
  const passed: number[] = [];
  const all = Promise.all(
    requests.map(async ([direction, bytes], index) => {
      await of.pass(direction, bytes);
      passed[index] = performance.now() - start;
    }),
  );
  await vi.advanceTimersByTimeAsync(60_000);
  await all;
  // Timers count whole milliseconds.
  return passed.map((ms) => Math.round(ms / 10) * 10);
}

describe('a throttle group', () => {
  it('lets nothing wait without limits', async () => {
    const many = [
      ['read', 1e12],
      ['write', 1e12],
    ] as const;
    expect(await times(group({}), many)).toEqual([0, 0]);
  });

  it('keeps bytes to their rate, a tenth of a second ahead', async () => {
    const read = ['read', 1000] as const;
    expect(await times(group({ 'bps-read': 1000 }), [read, read, read])).toEqual([0, 900, 1900]);
  });

  it('counts both directions for a total, and one for its own', async () => {
    const requests = [
      ['read', 1000],
      ['read', 1],
      ['write', 1],
    ] as const;
    expect(await times(group({ 'bps-total': 1000 }), requests)).toEqual([0, 900, 900]);
    expect(await times(group({ 'bps-read': 1000 }), requests)).toEqual([0, 900, 0]);
  });

  it('counts requests, large ones as several', async () => {
    const requests = [
      ['write', 8192],
      ['write', 1],
    ] as const;
    expect(await times(group({ 'iops-write': 1 }), requests)).toEqual([0, 900]);
    expect(await times(group({ 'iops-write': 1, 'iops-size': 4096 }), requests)).toEqual([0, 1900]);
  });

  it('allows bursts of the given rate and length', async () => {
    const write = ['write', 1000] as const;
    const burst = group({ 'bps-write': 1000, 'bps-write-max': 2000 });
    expect(await times(burst, [write, write, write, write])).toEqual([0, 0, 0, 1000]);
    const long = group({ 'bps-write': 1000, 'bps-write-max': 2000, 'bps-write-max-length': 2 });
    expect(await times(long, [write, write, write])).toEqual([0, 400, 900]);
  });

  it('lets who waits go when the operation is cancelled', async () => {
    const stop = new AbortController();
    const slow = group({ 'bps-total': 1 }, stop.signal);
    await slow.pass('read', 1000);
    const waiting = [slow.pass('read', 1), slow.pass('read', 1)];
    const outcomes = Promise.allSettled(waiting);
    await vi.advanceTimersByTimeAsync(100);
    stop.abort();
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: { kind: 'cancelled' } });
    }
  });
});
