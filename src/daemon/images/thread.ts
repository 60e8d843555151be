/** Entry of the engine thread: it holds images, and runs the jobs on them, several at a time. */
import { parentPort, workerData } from 'node:worker_threads';
import { shareOwners } from '../../engine/storage/owners.js';
import { type Engine, failureOf, type RunningJob, runJob } from '../workers/runner.js';
import type { EngineCall, EngineData, FromEngine, ToEngine } from './messages.js';
import { HeldNodes } from './nodes.js';

const port = parentPort!;
const { engine: engineUrl, owners, policy, groups } = workerData as EngineData;
shareOwners(owners);
const engine: Promise<Engine> = import(engineUrl);
engine.catch(() => undefined);

const post = (message: FromEngine): void => port.postMessage(message);
const nodes = new HeldNodes(policy, groups, (change) => post({ type: 'change', change }));
const jobs = new Map<string, RunningJob>();

async function answer(call: EngineCall): Promise<unknown> {
  switch (call.method) {
    case 'add':
      return nodes.add(call.options, call.cwd, call.owner);
    case 'del':
      return nodes.del(call.node);
    case 'reopen':
      return nodes.reopen(call.options);
    case 'query':
      return nodes.query(call.flat);
    case 'bitmaps':
      return { of: await nodes.bitmaps(call.node) };
    case 'bitmap':
      return nodes.changeBitmap(call.change);
    case 'group-add':
      return nodes.addGroup(call.object);
    case 'group-del':
      return nodes.removeGroup(call.id);
    case 'users':
      return nodes.users();
    case 'close':
      return nodes.close();
  }
}

port.on('message', (message: ToEngine) => {
  switch (message.type) {
    case 'run': {
      const { job, operation } = message;
      const scope = nodes.scopeFor({ id: job, operation });
      const running = runJob(engine, message, (said) => post({ type: 'job', job, message: said }), scope);
      jobs.set(job, running);
      void running.ended.then(() => {
        if (jobs.get(job) === running) jobs.delete(job);
      });
      break;
    }
    case 'control': {
      const running = jobs.get(message.job);
      // What it has begun goes on at once: its end does not wait for limits.
      if (message.control.type === 'cancel' && running !== undefined) {
        void running.ended.then(nodes.liftLimits());
      }
      running?.control(message.control);
      break;
    }
    case 'call': {
      const { id } = message;
      answer(message.call).then(
        (result) => post({ type: 'answer', id, json: JSON.stringify(result ?? {}) }),
        (error: unknown) => post({ type: 'refused', id, failure: failureOf(error) }),
      );
      break;
    }
    case 'ping':
      post({ type: 'pong' });
      break;
  }
});
