/** The progress line of `-p`, and the one that SIGUSR1 asks for. */
import type { ProgressReport, Shell } from './declare.js';
import { twoPlaces } from './numbers.js';

export interface ProgressLine {
  /** Prints 0 % where nothing was printed so far. */
  start(): void;
  report(progress: ProgressReport): void;
  /** Whether anything was said. */
  readonly started: boolean;
  /** Prints 100 %. */
  complete(): void;
  /** Ends the line; whatever happened before, as the reference does. */
  end(): void;
}

/**
 * `    (12.34/100%)` and a carriage return on stdout, whenever it is more than `step` percent from the last one. Where not `shown`,
 * one such line on stderr for each SIGUSR1. With `end` the operation itself reports 100 % as well.
 */
export function progressLine(shell: Shell, shown: boolean, step: number, end = false): ProgressLine {
  let printed = Number.NEGATIVE_INFINITY;
  let percent = 0;
  let started = false;
  let asked = false;
  const text = () => `    (${twoPlaces(Math.fround(percent))}/100%)`;
  const say = (value: number) => {
    started = true;
    percent = value;
    // What takes longer than it seemed goes back.
    if (shown && (Math.abs(value - printed) > step || value === 100 || (end && value === 0))) {
      printed = value;
      shell.out(`${text()}\r`);
    }
    if (asked && !shown) {
      asked = false;
      shell.err(`${text()}\n`);
    }
  };
  const ask = () => {
    asked = true;
  };
  // Without a listener the signal would start Node's debugger.
  process.on('SIGUSR1', ask);
  return {
    get started() {
      return started;
    },
    start() {
      if (!started) say(0);
    },
    report({ done, total }) {
      const value = total > 0 ? (done / total) * 100 : 0;
      if (!started && value !== 0) say(0);
      // 100 % is said when the operation has ended, which is after its last flush.
      if (value < 100 || end) say(value);
    },
    complete() {
      say(100);
    },
    end() {
      process.off('SIGUSR1', ask);
      if (shown) shell.out('\n');
    },
  };
}
