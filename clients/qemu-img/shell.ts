/** The program's side of a subcommand: its output, its signals, and its requests. */
import { existsSync } from 'node:fs';
import type { Listeners, RequestName, RequestParams, RequestResult, Shell } from './declare.js';
import { Exit, Interrupted } from './errors.js';
import type { TraceOptions } from './trace.js';
import { type Endpoint, endpoint, type Transport } from './transport.js';

const STOPPING = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** What a command line runs in: its output, and, where not to be chosen, what runs its operations. */
export interface Surroundings {
  /** All of `text` to stdout (1) or stderr (2), at once. */
  write(descriptor: 1 | 2, text: string): void;
  readonly transport?: Transport;
}

/** `connect`: what `--connect` says. `trace`: what `-T` says. */
export function createShell(
  connect: string | undefined,
  { write, transport }: Surroundings,
  trace?: TraceOptions,
): Shell {
  const cwd = process.cwd();
  const out = (text: string) => write(1, text);
  const err = (text: string) => write(2, text);

  async function request<N extends RequestName>(
    name: N,
    params: Omit<RequestParams<N>, 'cwd'>,
    listeners: Listeners = {},
  ): Promise<RequestResult<N>> {
    const events = trace?.events ?? [];
    const traced = events.length === 0 ? {} : { trace: events };
    const stop = new AbortController();
    let stopped: NodeJS.Signals | undefined;
    const onSignal = (signal: NodeJS.Signals) => {
      // The second signal does what it would have done without us.
      for (const each of STOPPING) process.off(each, onSignal);
      stopped = signal;
      stop.abort();
    };
    for (const each of STOPPING) process.on(each, onSignal);
    try {
      const chosen = transport ?? (await choose(endpoint(connect)));
      const reply = await chosen.run(
        name,
        { cwd, ...params, ...traced },
        {
          onProgress: listeners.onProgress ?? (() => {}),
          onEntries: listeners.onEntries ?? (() => {}),
          onTrace: (text) => trace?.write(text),
          onText: listeners.onText ?? ((stream, text) => (stream === 'stderr' ? err(text) : out(text))),
        },
        stop.signal,
      );
      if ('result' in reply) return reply.result as RequestResult<N>;
      if (stopped !== undefined) throw new Interrupted(stopped);
      throw reply.error;
    } finally {
      for (const each of STOPPING) process.off(each, onSignal);
    }
  }

  return { cwd, out, err, request };
}

/** The daemon where one answers at the endpoint, else this process. */
async function choose(where: Endpoint | undefined): Promise<Transport> {
  if (where !== undefined) {
    // Looking at the file is cheaper than loading what is needed to connect to it.
    if (where.required || existsSync(where.path)) {
      const { connect } = await import('./remote.js');
      try {
        return await connect(where.path);
      } catch (error) {
        if (where.required) {
          const why = (error as NodeJS.ErrnoException).code ?? String(error);
          throw new Exit(1, `Could not connect to the daemon at '${where.path}': ${why}`);
        }
      }
    }
  }
  return (await import('./embedded.js')).embedded;
}
