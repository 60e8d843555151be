/** Entry of a worker thread: one operation at a time, as the main thread says. */
import { parentPort, workerData } from 'node:worker_threads';
import type { Result } from 'neverthrow';
import { ImageError } from '../../engine/error.js';
import type { OperationContext } from '../../engine/operations/context.js';
import { createPacer, type Pacer } from '../../engine/operations/pacer.js';
import type { OperationName } from '../../protocol/commands/index.js';
import type { Failure, FromWorker, RunMessage, ToWorker, WorkerData } from './messages.js';
import { createMeter, type Meter } from './meter.js';
import { createOutput, type OutputQueue } from './output.js';

interface Engine {
  runOperation(
    name: OperationName,
    params: unknown,
    context: OperationContext,
  ): PromiseLike<Result<unknown, ImageError>>;
  preload?(): Promise<void>;
}

interface Running {
  readonly abort: AbortController;
  readonly pacer: Pacer;
  readonly meter: Meter;
  readonly output: OutputQueue;
  /** The client gave a limit: the operation's own is not looked at. */
  rateFixed: boolean;
}

const port = parentPort!;
const { engine: engineUrl } = workerData as WorkerData;

// Loaded while the worker is idle and warm, so that a short job finds it there.
const engine: Promise<Engine> = import(engineUrl);
// What cannot be loaded is told to the first job that needs it.
engine.then((module) => module.preload?.()).catch(() => undefined);

let running: Running | undefined;

function post(message: FromWorker): void {
  port.postMessage(message);
}

function failureOf(thrown: unknown): Failure {
  if (thrown instanceof ImageError) {
    return { kind: thrown.kind, message: thrown.message, context: thrown.context };
  }
  const text = thrown instanceof Error ? thrown.message : String(thrown);
  return { kind: 'internal', message: `internal error: ${text}`, context: {} };
}

async function run(message: RunMessage): Promise<void> {
  const abort = new AbortController();
  const pacer = createPacer(abort.signal);
  const meter = createMeter((progress) => post({ type: 'progress', progress }));
  const output = createOutput(message.job, (json) => post({ type: 'output', json }), pacer);
  const job: Running = { abort, pacer, meter, output, rateFixed: message.rate !== undefined };
  running = job;
  if (message.rate !== undefined) pacer.setRate(message.rate);
  const context: OperationContext = {
    cwd: message.cwd,
    policy: message.policy,
    signal: abort.signal,
    progress: (progress) => meter.update(progress),
    output: (said) => output.write(said),
    pace: (bytes) => pacer.pace(bytes),
    setRate(rate) {
      if (job.rateFixed) return;
      pacer.setRate(rate);
      post({ type: 'rate', rate });
    },
  };

  let answer: FromWorker;
  try {
    const { runOperation } = await engine;
    const result = await runOperation(message.operation, message.params, context);
    await output.finish();
    answer = result.isOk()
      ? { type: 'done', json: JSON.stringify(result.value ?? {}), progress: meter.finish() }
      : { type: 'failed', failure: failureOf(result.error) };
  } catch (thrown) {
    answer = { type: 'failed', failure: failureOf(thrown) };
  }
  if (answer.type === 'failed') meter.flush();
  meter.stop();
  running = undefined;
  post(answer);
}

port.on('message', (message: ToWorker) => {
  if (message.type === 'run') {
    void run(message);
    return;
  }
  // What arrives after the job has ended was meant for it.
  if (running === undefined) return;
  switch (message.type) {
    case 'pause':
      running.pacer.pause();
      post({ type: 'paused' });
      break;
    case 'resume':
      running.meter.restart();
      running.pacer.resume();
      post({ type: 'resumed' });
      break;
    case 'rate':
      running.rateFixed = true;
      running.pacer.setRate(message.rate);
      post({ type: 'rate', rate: message.rate });
      break;
    case 'cancel':
      running.output.abandon();
      running.abort.abort(new ImageError('cancelled', 'Operation cancelled'));
      break;
    case 'ack':
      running.output.ack(message.bytes);
      break;
  }
});
