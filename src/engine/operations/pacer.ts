/**
 * What stands behind `OperationContext.pace`: pause, rate limit and cancel of one operation, and a turn of the event loop now
 * and then. The same in a worker of the daemon and in the command line's own process.
 */
import { ImageError } from '../error.js';

export interface Pacer {
  /** See OperationContext.pace. Those who wait go on in the order in which they asked. `pace(0)` is a plain check point. */
  pace(bytes: number): Promise<void> | undefined;
  /** Bytes a second, 0: no limit. Holds from now on, for those too who wait already. */
  setRate(bytesPerSecond: number): void;
  readonly rate: number;
  pause(): void;
  resume(): void;
  readonly paused: boolean;
  /** Like pause, for another reason (a full output queue): all wait until each hold has been released. */
  hold(): () => void;
}

/** Idle time that a limited job may make up for at once: smooths over timers, too short to be seen as a burst. */
const BURST_SECONDS = 0.1;

/**
 * Work that never leaves the microtask queue (tables in the cache, synchronous reads) would keep messages, signals and timers
 * waiting for ever. So after this many milliseconds pace makes everyone wait for one turn of the event loop.
 */
const TURN_MS = 10;

/** setTimeout takes at most 2^31-1 ms; a longer wait is looked at again. */
const MAX_TIMER_MS = 60_000;

interface Waiter {
  readonly bytes: number;
  readonly resolve: () => void;
  readonly reject: (reason: unknown) => void;
}

/** The error of an operation that was cancelled: the signal's own reason where that is one. */
export function cancelledError(signal: AbortSignal): ImageError {
  return signal.reason instanceof ImageError
    ? signal.reason
    : new ImageError('cancelled', 'Operation cancelled');
}

/**
 * @param signal cancels: everyone who waits, and everyone who asks from then on, gets `cancelled`.
 * @param clock milliseconds, monotonic.
 */
export function createPacer(signal: AbortSignal, clock: () => number = () => performance.now()): Pacer {
  let rate = 0;
  /** Bytes that may pass now; below zero what has passed on credit: a unit larger than the burst must pass too. */
  let tokens = 0;
  let refilled = clock();
  let paused = false;
  let holds = 0;
  const waiters: Waiter[] = [];
  let timer: NodeJS.Timeout | undefined;
  let lastTurn = clock();
  let turn: Promise<void> | undefined;

  function refill(now: number): void {
    tokens = Math.min(tokens + ((now - refilled) / 1000) * rate, rate * BURST_SECONDS);
    refilled = now;
  }

  /** Takes `bytes` where the limit allows some; the debt is paid by who comes next. */
  function take(bytes: number): boolean {
    if (rate === 0) return true;
    refill(clock());
    if (tokens < 0) return false;
    tokens -= bytes;
    return true;
  }

  function pump(): void {
    clearTimeout(timer);
    timer = undefined;
    if (paused || holds > 0) return;
    while (waiters.length > 0 && take(waiters[0]!.bytes)) waiters.shift()!.resolve();
    if (waiters.length > 0) {
      const wait = Math.ceil((-tokens / rate) * 1000);
      timer = setTimeout(pump, Math.min(Math.max(wait, 1), MAX_TIMER_MS));
    }
  }

  function nextTurn(): Promise<void> {
    turn ??= new Promise<void>((resolve) => setImmediate(resolve)).then(() => {
      turn = undefined;
      lastTurn = clock();
      if (signal.aborted) throw cancelledError(signal);
    });
    return turn;
  }

  signal.addEventListener(
    'abort',
    () => {
      clearTimeout(timer);
      for (const waiter of waiters.splice(0)) waiter.reject(cancelledError(signal));
    },
    { once: true },
  );

  return {
    get rate() {
      return rate;
    },
    get paused() {
      return paused;
    },
    pace(bytes) {
      if (signal.aborted) return Promise.reject(cancelledError(signal));
      if (waiters.length > 0 || paused || holds > 0 || !take(bytes)) {
        return new Promise<void>((resolve, reject) => {
          waiters.push({ bytes, resolve, reject });
          if (timer === undefined) pump();
        });
      }
      return turn !== undefined || clock() - lastTurn > TURN_MS ? nextTurn() : undefined;
    },
    setRate(bytesPerSecond) {
      rate = bytesPerSecond;
      // Neither what was saved nor what was owed at the old rate counts at the new one.
      tokens = 0;
      refilled = clock();
      pump();
    },
    pause() {
      paused = true;
    },
    resume() {
      paused = false;
      // Time spent paused is not saved up.
      refilled = clock();
      pump();
    },
    hold() {
      holds++;
      let held = true;
      return () => {
        if (!held) return;
        held = false;
        holds--;
        if (holds === 0) pump();
      };
    },
  };
}
