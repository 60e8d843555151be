/** What hears of the nodes of an operation that is traced. Without it none of this is there, and nothing is asked for it. */
import type { FileObserver } from '../storage/observer.js';
import type { Storage } from '../storage/storage.js';
import type { ImageNode } from './image.js';

export interface Tracer extends FileObserver {
  /** A format is about to be opened on `file`. */
  opening(layer: {
    readonly file: Storage;
    readonly driver: string;
    readonly filename: string;
    readonly writable: boolean;
  }): void;
  /** The node of the format that was opened on its file: its requests are told from now on. */
  opened(image: ImageNode): void;
  /** The operation's own view of a held node: its requests are told, not those of others. */
  held(image: ImageNode, name: string): void;
}
