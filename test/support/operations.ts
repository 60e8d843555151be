/** Runs an engine operation as the command line would, without a process: its result or error, and what it said. */
import { ImageError } from '../../src/engine/error.js';
import type { OperationContext, Output, Progress } from '../../src/engine/operations/context.js';
import { createPacer } from '../../src/engine/operations/pacer.js';
import type { MapEntry } from '../../src/protocol/commands/image-map.js';

export interface Outcome<R> {
  readonly result: R | undefined;
  readonly error: ImageError | undefined;
  /** The error as qemu-img prints it, prefix and hints included; empty without one. */
  readonly errorText: string;
  readonly stdout: string;
  readonly stderr: string;
  readonly trace: string;
  readonly entries: readonly MapEntry[];
  readonly batches: readonly number[];
  readonly progress: readonly Progress[];
}

/** For an operation that nobody watches, pauses or slows. */
export function quietContext(extra: Partial<OperationContext> = {}): OperationContext {
  return {
    cwd: '/',
    policy: {},
    signal: new AbortController().signal,
    progress: () => {},
    output: () => {},
    pace: () => undefined,
    setRate: () => {},
    ...extra,
  };
}

export async function perform<P, R>(
  operation: (params: P, context: OperationContext) => Promise<R>,
  params: P,
  cwd: string,
  extra: Partial<OperationContext> = {},
): Promise<Outcome<R>> {
  const text = { stdout: '', stderr: '', trace: '' };
  const entries: MapEntry[] = [];
  const batches: number[] = [];
  const progress: Progress[] = [];
  const signal = extra.signal ?? new AbortController().signal;
  const pacer = createPacer(signal);
  const context: OperationContext = {
    cwd,
    policy: {},
    signal,
    progress: (report) => void progress.push(report),
    output(output: Output) {
      if (output.stream === 'entries') {
        batches.push(output.entries.length);
        entries.push(...output.entries);
      } else text[output.stream] += output.text;
    },
    pace: (bytes) => pacer.pace(bytes),
    setRate: (rate) => pacer.setRate(rate),
    ...extra,
  };
  let result: R | undefined;
  let error: ImageError | undefined;
  try {
    result = await operation(params, context);
  } catch (thrown) {
    if (!(thrown instanceof ImageError)) throw thrown;
    error = thrown;
  }
  const hint = error?.context.hint === undefined ? '' : `${error.context.hint}\n`;
  const errorText = error === undefined ? '' : `qemu-img: ${error.message}\n${hint}`;
  return { result, error, errorText, ...text, entries, batches, progress };
}
