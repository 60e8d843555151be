/** Where an operation runs: both ways have this shape. */
import { defaultSocketPath } from '../../src/protocol/endpoint.js';
import type { Listeners } from './declare.js';
import type { RequestError } from './errors.js';

export type Reply = { readonly result: unknown } | { readonly error: RequestError };

export interface Transport {
  /**
   * Runs one operation to its end. Aborting the signal cancels it; the promise resolves (with an error of kind
   * `cancelled`) when it has ended and its locks are gone.
   */
  run(method: string, params: object, listeners: Required<Listeners>, signal: AbortSignal): Promise<Reply>;
}

/** How the command line, or the environment, says which daemon to use. */
export interface Endpoint {
  readonly path: string;
  /** Running in this process is no substitute. */
  readonly required: boolean;
}

/** `connect` is `--connect`'s argument. Undefined: no daemon. */
export function endpoint(
  connect: string | undefined,
  env: NodeJS.ProcessEnv = process.env,
): Endpoint | undefined {
  if (connect !== undefined) return connect === 'none' ? undefined : { path: connect, required: true };
  if (env.IMGD_SOCKET === '') return undefined;
  const path = defaultSocketPath(env, process.getuid?.());
  return path === undefined ? undefined : { path, required: false };
}
