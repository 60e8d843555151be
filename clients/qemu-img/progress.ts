/** The progress line of `-p`, and the one that SIGUSR1 asks for. */
import type { ProgressReport, Shell } from './declare.js';

export interface ProgressLine {
  /** Prints 0 % where nothing was printed so far. */
  start(): void;
  report(progress: ProgressReport): void;
  /** Prints 100 %. */
  complete(): void;
  /** Ends the line; whatever happened before, as the reference does. */
  end(): void;
}

/**
 * `    (12.34/100%)` and a carriage return on stdout, whenever more than `step` percent were added. Where not `shown`,
 * one such line on stderr for each SIGUSR1.
 */
export function progressLine(shell: Shell, shown: boolean, step: number): ProgressLine {
  let printed = Number.NEGATIVE_INFINITY;
  let percent = 0;
  let started = false;
  let asked = false;
  const text = () => `    (${percent.toFixed(2)}/100%)`;
  const say = (value: number) => {
    started = true;
    percent = value;
    if (shown && (value - printed > step || value === 100)) {
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
    start() {
      if (!started) say(0);
    },
    report({ done, total }) {
      if (!started) say(0);
      const value = total > 0 ? (done / total) * 100 : 0;
      // 100 % is said when the operation has ended, which is after its last flush.
      if (value >= percent && value < 100) say(value);
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
