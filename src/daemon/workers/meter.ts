/** Turns an operation's progress into what clients see: at most ten a second, with rate and estimate, 100 % only at the end. */
import type { Progress } from '../../engine/operations/context.js';
import type { JobProgress } from '../../protocol/commands/jobs.js';

/** Least time between two reports. */
const INTERVAL_MS = 100;

/** Time constant of the smoothing: long enough for a steady estimate, short enough to show a change of speed. */
const SMOOTHING_MS = 2000;

/** An operation that says it is through may still flush, rename or fail: until it has succeeded no more than this is told. */
const UNFINISHED = 0.9999;

export interface Meter {
  /** Takes what the operation says; sends a report now or soon. */
  update(progress: Progress): void;
  /** Time that passes until `restart` (a pause) does not count as slowness. */
  restart(): void;
  /** Sends what waits. */
  flush(): void;
  /** The last report, 100 %; undefined where the operation never told of progress. */
  finish(): JobProgress | undefined;
  /** Sends nothing any more. */
  stop(): void;
}

export function createMeter(
  send: (progress: JobProgress) => void,
  clock: () => number = () => performance.now(),
): Meter {
  let latest: Progress | undefined;
  let unsent = false;
  let sentAt = Number.NEGATIVE_INFINITY;
  let timer: NodeJS.Timeout | undefined;
  let rate: number | undefined;
  let measuredAt = clock();
  let measuredDone = 0;

  function measure(now: number, progress: Progress): void {
    const elapsed = now - measuredAt;
    if (elapsed <= 0) return;
    if (progress.done >= measuredDone) {
      const current = ((progress.done - measuredDone) * 1000) / elapsed;
      rate = rate === undefined ? current : rate + (1 - Math.exp(-elapsed / SMOOTHING_MS)) * (current - rate);
    }
    measuredAt = now;
    measuredDone = progress.done;
  }

  function report(): void {
    clearTimeout(timer);
    timer = undefined;
    if (latest === undefined || !unsent) return;
    const now = clock();
    measure(now, latest);
    sentAt = now;
    unsent = false;
    const { phase, total, written, zeros } = latest;
    const done = Math.min(latest.done, Math.floor(total * UNFINISHED));
    const speed = rate === undefined ? undefined : Math.round(rate);
    send({
      phase,
      done,
      total,
      ...(written === undefined ? {} : { written }),
      ...(zeros === undefined ? {} : { zeros }),
      percent: total === 0 ? 0 : Math.floor((done / total) * 10_000) / 100,
      ...(speed === undefined ? {} : { rate: speed }),
      ...(speed === undefined || speed === 0 ? {} : { eta: Math.ceil((total - latest.done) / speed) }),
    });
  }

  return {
    update(progress) {
      latest = progress;
      unsent = true;
      const wait = sentAt + INTERVAL_MS - clock();
      if (wait <= 0) report();
      else timer ??= setTimeout(report, wait);
    },
    restart() {
      measuredAt = clock();
      measuredDone = latest?.done ?? 0;
    },
    flush: report,
    finish() {
      clearTimeout(timer);
      if (latest === undefined) return undefined;
      measure(clock(), latest);
      const { phase, total, written, zeros } = latest;
      return {
        phase,
        done: total,
        total,
        ...(written === undefined ? {} : { written }),
        ...(zeros === undefined ? {} : { zeros }),
        percent: 100,
        ...(rate === undefined ? {} : { rate: Math.round(rate) }),
        eta: 0,
      };
    },
    stop() {
      clearTimeout(timer);
      unsent = false;
    },
  };
}
