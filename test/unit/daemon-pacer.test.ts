import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { createPacer } from '../../src/engine/operations/pacer.js';

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setImmediate', 'performance'] });
});
afterEach(() => {
  vi.useRealTimers();
});

/** Runs `units` units of `bytes` through the pacer; tells how many have passed. */
function work(pacer: ReturnType<typeof createPacer>, units: number, bytes: number) {
  const state = { passed: 0, failure: undefined as unknown, over: false };
  void (async () => {
    try {
      for (let unit = 0; unit < units; unit++) {
        await pacer.pace(bytes);
        state.passed++;
      }
    } catch (error) {
      state.failure = error;
    }
    state.over = true;
  })();
  return state;
}
const settle = (): Promise<unknown> => vi.advanceTimersByTimeAsync(0);

describe('pacer', () => {
  it('is synchronous while nothing holds it back', () => {
    const pacer = createPacer(new AbortController().signal);
    for (let unit = 0; unit < 1000; unit++) expect(pacer.pace(1 << 20)).toBeUndefined();
  });

  it('lets the event loop turn when asked for a long time', async () => {
    const pacer = createPacer(new AbortController().signal);
    vi.advanceTimersByTime(50);
    const first = pacer.pace(1);
    expect(first).toBeInstanceOf(Promise);
    // Everyone waits for the same turn, or the others would keep it from coming.
    expect(pacer.pace(1)).toBe(first);
    await settle();
    await first;
    expect(pacer.pace(1)).toBeUndefined();
  });

  it('keeps to a rate, whatever the size of the units', async () => {
    for (const bytes of [1000, 10_000, 700_000]) {
      const pacer = createPacer(new AbortController().signal);
      pacer.setRate(1_000_000);
      const state = work(pacer, 10_000, bytes);
      await vi.advanceTimersByTimeAsync(10_000);
      const passed = state.passed * bytes;
      expect(passed).toBeGreaterThan(9_500_000);
      expect(passed).toBeLessThan(10_000_000 + 200_000 + bytes);
    }
  });

  it('shares a rate among several requests in flight', async () => {
    const pacer = createPacer(new AbortController().signal);
    pacer.setRate(100_000);
    const states = [1, 2, 3, 4].map(() => work(pacer, 1000, 1000));
    await vi.advanceTimersByTimeAsync(2000);
    const passed = states.map((state) => state.passed);
    expect(passed.reduce((a, b) => a + b)).toBeLessThanOrEqual(200 + 20);
    expect(Math.max(...passed) - Math.min(...passed)).toBeLessThanOrEqual(12);
  });

  it('takes a new rate at once, also when the old one would have made it wait for ever', async () => {
    const pacer = createPacer(new AbortController().signal);
    pacer.setRate(1);
    const state = work(pacer, 100, 1_000_000);
    await vi.advanceTimersByTimeAsync(1000);
    expect(state.passed).toBe(1);
    pacer.setRate(100_000_000);
    await vi.advanceTimersByTimeAsync(500);
    expect(state.passed).toBeGreaterThan(40);
    pacer.setRate(0);
    await settle();
    expect(state.passed).toBe(100);
  });

  it('pauses and goes on, and saves up nothing meanwhile', async () => {
    const pacer = createPacer(new AbortController().signal);
    pacer.setRate(1000);
    const state = work(pacer, 1000, 100);
    await vi.advanceTimersByTimeAsync(1000);
    pacer.pause();
    const before = state.passed;
    await vi.advanceTimersByTimeAsync(60_000);
    expect(state.passed).toBe(before);
    pacer.resume();
    await vi.advanceTimersByTimeAsync(1000);
    expect(state.passed - before).toBeLessThanOrEqual(13);
    expect(state.passed - before).toBeGreaterThanOrEqual(9);
  });

  it('waits for every hold', async () => {
    const pacer = createPacer(new AbortController().signal);
    const first = pacer.hold();
    const second = pacer.hold();
    const state = work(pacer, 1, 1);
    first();
    first();
    await settle();
    expect(state.passed).toBe(0);
    second();
    await settle();
    expect(state.over).toBe(true);
  });

  it('rejects those who wait, and all later ones, when cancelled', async () => {
    const abort = new AbortController();
    const pacer = createPacer(abort.signal);
    pacer.pause();
    const state = work(pacer, 1, 1);
    abort.abort();
    await settle();
    expect(state.failure).toBeInstanceOf(ImageError);
    expect((state.failure as ImageError).kind).toBe('cancelled');
    await expect(pacer.pace(0)).rejects.toMatchObject({ kind: 'cancelled' });
  });

  it('rejects those who wait for a turn', async () => {
    const abort = new AbortController();
    const pacer = createPacer(abort.signal);
    vi.advanceTimersByTime(50);
    const waiting = pacer.pace(1)!;
    abort.abort(new ImageError('cancelled', 'enough'));
    const outcome = expect(waiting).rejects.toThrow('enough');
    await settle();
    await outcome;
  });
});
