/** The contract of filters: storages that stand on other nodes, opened from options as these are. */
import type { FlatOptions } from '../flat-options.js';
import type { OpenedFile } from '../open-storage.js';
import type { ThrottleGroup } from '../throttle-group.js';

export interface FilterContext {
  /** The node's own options; the filter takes out what it knows, and what is left is refused. */
  readonly flat: FlatOptions;
  readonly writable: boolean;
  /** Flushes mean nothing (`cache=unsafe`): they do not reach the node. */
  readonly unsafe: boolean;
  /**
   * Opens the child of that name (`file`, `image`, `children.0`). `strict`: it must say its driver or have a `file`; otherwise a
   * bare `filename` is a file of the host.
   */
  openChild(child: string, options?: { readonly strict?: boolean }): Promise<OpenedFile>;
  /** The group of that id among the caller's objects. */
  throttleGroup(id: string): ThrottleGroup | undefined;
  /** Reads a small text file that the options name, through the gate. */
  readText(filename: string): Promise<string>;
}

export interface FilterDriver {
  readonly name: string;
  /** Has filenames of its own (`blkdebug:...`): the reference counts it among the protocols. */
  readonly protocol?: boolean;
  open(context: FilterContext): Promise<OpenedFile>;
}
