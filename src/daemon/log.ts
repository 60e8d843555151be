/** Structured logs: JSON lines on stderr. Params of calls are never logged; they may hold secrets. */
import { pino } from 'pino';

export type Log = pino.Logger;

export interface LogSink {
  readonly log: Log;
  /** Writes what is buffered; before the process ends. */
  flush(): void;
}

export function createLog(level: string): LogSink {
  // Asynchronous: a terminal or pipe that nobody reads must not stop the daemon.
  const destination = pino.destination({ fd: 2, sync: false });
  const log = pino(
    { level, base: { pid: process.pid }, formatters: { level: (label) => ({ level: label }) } },
    destination,
  );
  return {
    log,
    flush() {
      try {
        destination.flushSync();
      } catch {
        // stderr is closed: nobody to tell
      }
    },
  };
}
