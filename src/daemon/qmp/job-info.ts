/** Jobs as QMP tells of them. */
import type { JobInfo } from '../../protocol/commands/jobs.js';

/** QAPI's JobType where it has the operation; others keep their own names. */
const TYPES: Readonly<Record<string, string>> = {
  'image-create': 'create',
  'image-commit': 'commit',
  'image-amend': 'amend',
};

/** What works through a whole image, as QEMU's block jobs do: these are told of in BLOCK_JOB_* and query-block-jobs. */
const BLOCK_JOBS: ReadonlySet<string> = new Set([
  'image-convert',
  'image-commit',
  'image-rebase',
  'image-dd',
  'image-compare',
  'image-check',
]);

export function jobType(operation: string): string {
  return TYPES[operation] ?? operation;
}

export function isBlockJob(job: JobInfo): boolean {
  return BLOCK_JOBS.has(job.type);
}

/** A job that has not said how far it is counts as one step. */
function progress(job: JobInfo): { done: number; total: number } {
  const done = job['current-progress'];
  const total = job['total-progress'];
  return total > 0 ? { done, total } : { done: job.status === 'concluded' ? 1 : 0, total: 1 };
}

/** QAPI's JobInfo. @param file that the job creates: its name stands in front of what qemu-img's user is told, not here. */
export function qmpJobInfo(job: JobInfo, file?: string) {
  const { error } = job;
  const named = file !== undefined && error?.startsWith(`${file}: `) === true;
  const { done, total } = progress(job);
  return {
    id: job.id,
    type: jobType(job.type),
    status: job.status,
    'current-progress': done,
    'total-progress': total,
    ...(error === undefined ? {} : { error: named ? error.slice(file.length + 2) : error }),
  };
}

/** QAPI's BlockJobInfo. */
export function blockJobInfo(job: JobInfo) {
  const { done, total } = progress(job);
  return {
    type: jobType(job.type),
    device: job.id,
    len: total,
    offset: done,
    busy: job.status === 'running',
    paused: job.status === 'paused',
    speed: job.speed ?? 0,
    'io-status': 'ok',
    ready: job.status === 'ready',
    status: job.status,
    'auto-finalize': true,
    'auto-dismiss': false,
    ...(job.error === undefined ? {} : { error: job.error }),
  };
}
