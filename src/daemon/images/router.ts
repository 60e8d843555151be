/** Sends each job where its images are: to a worker of its own, or to the engine thread that holds them. */
import type { FromWorker } from '../workers/messages.js';
import type { JobListener, Pool } from '../workers/pool.js';
import type { HeldImages } from './held.js';
import type { Owners } from './owners.js';

export function createRouter(pool: Pool, held: HeldImages, owners: Owners): Pool {
  return {
    run(message, listener) {
      const owner = owners.add({ kind: 'job', job: message.job, operation: message.operation });
      const named: JobListener = {
        message(said: FromWorker) {
          if (said.type === 'failed') {
            listener.message({ type: 'failed', failure: owners.named(said.failure) });
          } else listener.message(said);
          if (said.type === 'failed' || said.type === 'done') owners.remove(owner);
        },
        lost(failure) {
          owners.remove(owner);
          listener.lost(failure);
        },
      };
      const place = held.concerns(message.params) ? held : pool;
      return place.run({ ...message, owner }, named);
    },
    get busy() {
      return pool.busy;
    },
    get idle() {
      return pool.idle;
    },
    get lost() {
      return pool.lost;
    },
    close: () => pool.close(),
  };
}
