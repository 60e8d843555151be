/** Structured logs: JSON lines on stderr. Params of calls are never logged; they may hold secrets. */
import { pino } from 'pino';

export type Log = pino.Logger;

const LAST_LINES_MS = 1000;

export interface LogSink {
  readonly log: Log;
  /** Writes what is buffered, though not behind what is being written at this moment: where the process cannot wait. */
  flush(): void;
  /** To be called in the turn of a line of level info: resolves when all is written, in order, or when nobody reads it. */
  settled(): Promise<void>;
}

export function createLog(level: string): LogSink {
  // Asynchronous: a terminal or pipe that nobody reads must not stop the daemon.
  const destination = pino.destination({ fd: 2, sync: false });
  const log = pino(
    { level, base: { pid: process.pid }, formatters: { level: (label) => ({ level: label }) } },
    destination,
  );
  const flush = (): void => {
    try {
      destination.flushSync();
    } catch {
      // stderr is closed: nobody to tell
    }
  };
  return {
    log,
    flush,
    async settled() {
      if (log.isLevelEnabled('info')) {
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, LAST_LINES_MS);
          destination.once('drain', () => {
            clearTimeout(timer);
            resolve();
          });
        });
      }
      flush();
    },
  };
}
