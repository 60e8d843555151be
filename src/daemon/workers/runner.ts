/** Runs one operation in this thread, as the main thread says: what a job is to its worker. */
import type { Result } from 'neverthrow';
import { ImageError } from '../../engine/error.js';
import type { NodeScope } from '../../engine/node/node-scope.js';
import type { OperationContext } from '../../engine/operations/context.js';
import { createPacer } from '../../engine/operations/pacer.js';
import type { OperationName } from '../../protocol/commands/index.js';
import type { ControlMessage, Failure, FromWorker, RunMessage } from './messages.js';
import { createMeter } from './meter.js';
import { createOutput } from './output.js';

export interface Engine {
  runOperation(
    name: OperationName,
    params: unknown,
    context: OperationContext,
  ): PromiseLike<Result<unknown, ImageError>>;
  preload?(): Promise<void>;
}

export interface RunningJob {
  /** What arrives after the job has ended was meant for it, and does nothing. */
  control(message: ControlMessage): void;
  /** Resolves when the last message of the job has been posted. */
  readonly ended: Promise<void>;
}

export function failureOf(thrown: unknown): Failure {
  if (thrown instanceof ImageError) {
    return { kind: thrown.kind, message: thrown.message, context: thrown.context };
  }
  const text = thrown instanceof Error ? thrown.message : String(thrown);
  return { kind: 'internal', message: `internal error: ${text}`, context: {} };
}

/** @param nodes what names of nodes mean to the job. */
export function runJob(
  engine: Promise<Engine>,
  message: RunMessage,
  post: (message: FromWorker) => void,
  nodes?: NodeScope,
): RunningJob {
  const abort = new AbortController();
  const pacer = createPacer(abort.signal);
  const meter = createMeter((progress) => post({ type: 'progress', progress }));
  const output = createOutput(message.job, (json) => post({ type: 'output', json }), pacer);
  /** The client gave a limit: the operation's own is not looked at. */
  let rateFixed = message.rate !== undefined;
  let over = false;
  if (message.rate !== undefined) pacer.setRate(message.rate);
  let letGo: (() => void) | undefined;
  let told: Promise<void> | undefined;
  /** Resolves when the job may conclude, and rejects when it is cancelled instead. */
  const finalize = (): Promise<void> => {
    told ??= new Promise<void>((resolve, reject) => {
      const { signal } = abort;
      if (signal.aborted) reject(signal.reason);
      signal.addEventListener('abort', () => reject(signal.reason), { once: true });
      letGo = resolve;
      meter.flush();
      post({ type: 'pending' });
    });
    return told;
  };
  const context: OperationContext = {
    ...(message.pending === true ? { finalize } : {}),
    cwd: message.cwd,
    policy: message.policy,
    ...(nodes === undefined ? {} : { nodes }),
    ...(message.owner === undefined ? {} : { owner: message.owner }),
    signal: abort.signal,
    progress: (progress) => meter.update(progress),
    output: (said) => output.write(said),
    pace: (bytes) => pacer.pace(bytes),
    checkpoint: { last: message.mark, keep: (mark) => post({ type: 'mark', mark }) },
    setRate(rate) {
      if (rateFixed) return;
      pacer.setRate(rate);
      post({ type: 'rate', rate });
    },
  };

  async function work(): Promise<void> {
    let answer: FromWorker;
    try {
      const { runOperation } = await engine;
      const result = await runOperation(message.operation, message.params, context);
      await output.finish();
      if (message.pending === true && result.isOk()) await finalize();
      answer = result.isOk()
        ? { type: 'done', json: JSON.stringify(result.value ?? {}), progress: meter.finish() }
        : { type: 'failed', failure: failureOf(result.error) };
    } catch (thrown) {
      answer = { type: 'failed', failure: failureOf(thrown) };
    }
    if (answer.type === 'failed') meter.flush();
    meter.stop();
    over = true;
    post(answer);
  }

  function control(message: ControlMessage): void {
    if (over) return;
    switch (message.type) {
      case 'pause':
        pacer.pause();
        post({ type: 'paused' });
        break;
      case 'resume':
        meter.restart();
        pacer.resume();
        post({ type: 'resumed' });
        break;
      case 'finalize':
        letGo?.();
        break;
      case 'rate':
        rateFixed = true;
        pacer.setRate(message.rate);
        post({ type: 'rate', rate: message.rate });
        break;
      case 'cancel':
        output.abandon();
        abort.abort(new ImageError('cancelled', 'Operation cancelled'));
        break;
      case 'ack':
        output.ack(message.bytes);
        break;
    }
  }

  return { control, ended: work() };
}
