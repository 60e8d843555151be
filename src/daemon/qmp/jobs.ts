/** QMP's commands about jobs, on the daemon's jobs. */

import * as v from 'valibot';
import { JobId, JobOptions } from '../../protocol/commands/jobs.js';
import type { JobManager } from '../jobs/manager.js';
import type { Call, Method } from '../sessions/rpc.js';
import { RpcError } from '../sessions/rpc-error.js';
import type { QmpCommandName, QmpParams } from './declarations.js';
import { blockJobInfo, isBlockJob, qmpJobInfo } from './job-info.js';
import { wellFormed } from './objects.js';
import { QmpError } from './reply.js';

type JobCommand = Extract<QmpCommandName, `${string}job${string}`>;
type JobHandlers = { readonly [N in JobCommand]: (given: QmpParams<N>, call: Call) => unknown };

/**
 * @param methods JSON-RPC's, for the verbs.
 * @param created files that jobs of blockdev-create are about.
 */
export function jobCommands(
  jobs: JobManager,
  methods: Readonly<Record<string, Method>>,
  created: ReadonlyMap<string, string>,
): JobHandlers {
  const verb =
    (name: string) =>
    async (given: { id: string }, call: Call): Promise<object> => {
      const method = methods[`job-${name}`];
      if (method !== undefined) await method(given, call);
      // No job that there is waits for it.
      else throw refused(given.id, name);
      return {};
    };

  function refused(id: string, name: string): QmpError {
    const { status } = jobs.info(id);
    return new QmpError(`Job '${id}' in state '${status}' cannot accept command verb '${name}'`);
  }

  /** The same for those that know jobs by their device: another error where there is none. */
  const blockVerb =
    (name: string) =>
    async (given: { readonly device?: string; readonly id?: string }, call: Call): Promise<object> => {
      const id = given.device ?? given.id!;
      const { device: _, ...rest } = given;
      findBlockJob(id);
      return verb(name)({ ...rest, id } as { id: string }, call);
    };

  function findBlockJob(id: string): void {
    try {
      if (isBlockJob(jobs.info(id))) return;
    } catch (error) {
      if (!(error instanceof RpcError)) throw error;
    }
    throw new QmpError(`Block job '${id.slice(0, 128)}' not found`, 'DeviceNotActive');
  }

  return {
    'query-jobs': () => jobs.list().map((job) => qmpJobInfo(job, created.get(job.id))),
    'job-pause': verb('pause'),
    'job-resume': verb('resume'),
    'job-cancel': verb('cancel'),
    'job-complete': verb('complete'),
    'job-finalize': verb('finalize'),
    'job-dismiss': verb('dismiss'),
    'query-block-jobs': () => jobs.list().filter(isBlockJob).map(blockJobInfo),
    'block-job-pause': blockVerb('pause'),
    'block-job-resume': blockVerb('resume'),
    // QEMU's `force` is about jobs that wait for `complete`: it never leaves an image half written.
    'block-job-cancel': ({ device }, call) => blockVerb('cancel')({ device }, call),
    'block-job-set-speed': async ({ device, speed }, call) => {
      findBlockJob(device);
      if (speed < 0) throw new QmpError("Parameter 'speed' expects a non-negative value");
      await methods['job-set-speed']!({ id: device, speed }, call);
      return {};
    },
    'block-job-complete': blockVerb('complete'),
    'block-job-finalize': blockVerb('finalize'),
    'block-job-dismiss': blockVerb('dismiss'),
  };
}

export function jobExists(jobs: JobManager, id: string): boolean {
  try {
    jobs.get(id);
    return true;
  } catch (error) {
    if (error instanceof RpcError) return false;
    throw error;
  }
}

/** What a job of QMP's is started with: it stays until it is dismissed, and its id is nobody else's. */
export function manualJob(jobs: JobManager, id: string): JobOptions {
  if (!wellFormed(id) || !v.is(JobId, id)) throw new QmpError(`Invalid job ID '${id.slice(0, 128)}'`);
  if (jobExists(jobs, id)) throw new QmpError(`Job ID '${id}' already in use`);
  return v.parse(JobOptions, { id, wait: false, 'auto-dismiss': false });
}
