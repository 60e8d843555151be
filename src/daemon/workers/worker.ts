/** Entry of a worker thread: one long operation, or several quick ones at a time, as the main thread says. */
import { setPriority } from 'node:os';
import { parentPort, workerData } from 'node:worker_threads';
import { waitInThread } from '../../engine/storage/file-io.js';
import { shareOwners } from '../../engine/storage/owners.js';
import { LONG_PRIORITY } from '../pool-threads.js';
import type { FromPoolWorker, FromWorker, ToPoolWorker, WorkerData } from './messages.js';
import { type Engine, type RunningJob, runJob } from './runner.js';

const port = parentPort!;
const { engine: engineUrl, owners } = workerData as WorkerData;
if (owners !== undefined) shareOwners(owners);
waitInThread();

// Loaded while the worker is idle and warm, so that a short job finds it there.
const engine: Promise<Engine> = import(engineUrl);
// What cannot be loaded is told to the first job that needs it.
engine.then((module) => module.preload?.()).catch(() => undefined);

let lowered = false;

/** For good: the system lets nobody but root take it back, so a thread that has had a long job gets no quick ones. */
function giveWay(): void {
  // Elsewhere it is the whole process that would.
  if (lowered || process.platform !== 'linux') return;
  lowered = true;
  try {
    setPriority(LONG_PRIORITY);
  } catch {
    // Then they share.
  }
}

const jobs = new Map<string, RunningJob>();

let waiting: FromPoolWorker[] = [];

function flush(): void {
  const messages = waiting;
  waiting = [];
  if (messages.length > 0) port.postMessage(messages);
}

/** The ends of quick jobs that came together are told together: a message costs more than what is in it. */
function post(job: string, message: FromWorker): void {
  if (waiting.length === 0 && (message.type === 'done' || message.type === 'failed')) setImmediate(flush);
  waiting.push({ job, message });
  if (message.type !== 'done' && message.type !== 'failed') flush();
}

port.on('message', (messages: readonly ToPoolWorker[]) => {
  for (const message of messages) {
    const { job } = message;
    if (message.type === 'control') {
      jobs.get(job)?.control(message.control);
      continue;
    }
    if (message.long === true) giveWay();
    const running = runJob(engine, message, (said) => post(job, said));
    jobs.set(job, running);
    void running.ended.then(() => jobs.delete(job));
  }
});
