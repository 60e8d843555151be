/** Entry of a worker thread: one operation at a time, as the main thread says. */
import { parentPort, workerData } from 'node:worker_threads';
import { shareOwners } from '../../engine/storage/owners.js';
import type { FromWorker, ToWorker, WorkerData } from './messages.js';
import { type Engine, type RunningJob, runJob } from './runner.js';

const port = parentPort!;
const { engine: engineUrl, owners } = workerData as WorkerData;
if (owners !== undefined) shareOwners(owners);

// Loaded while the worker is idle and warm, so that a short job finds it there.
const engine: Promise<Engine> = import(engineUrl);
// What cannot be loaded is told to the first job that needs it.
engine.then((module) => module.preload?.()).catch(() => undefined);

let running: RunningJob | undefined;

function post(message: FromWorker): void {
  port.postMessage(message);
}

port.on('message', (message: ToWorker) => {
  if (message.type === 'run') running = runJob(engine, message, post);
  else running?.control(message);
});
