/** Who is told of the files that one operation opens. */
import type { Storage } from './storage.js';

export interface FileObserver {
  /** A storage was opened; its requests are told from now on. */
  file(storage: Storage): void;
  /** A file was not opened, because of this. */
  refused(filename: string, error: unknown): void;
}
