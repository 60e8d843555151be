/** Which jobs do not get on. There are no time limits: how long a job may take nobody can know. */
import type { JobProgress } from '../../protocol/commands/jobs.js';
import type { Job } from './job.js';

/** What a job has done since its last report. */
export function changed(before: JobProgress | undefined, after: JobProgress): boolean {
  return (
    before?.done !== after.done ||
    before.total !== after.total ||
    before.phase !== after.phase ||
    before.written !== after.written
  );
}

export function gotOn(job: Job): void {
  job.lastProgress = Date.now();
  job.stalled = undefined;
}

/**
 * Jobs that run and have not got on for `timeout` seconds (0: none), with the seconds since. Each is told of once, until it
 * gets on.
 */
export function newlyStalled(jobs: Iterable<Job>, timeout: number): [job: Job, seconds: number][] {
  if (timeout === 0) return [];
  const now = Date.now();
  const found: [Job, number][] = [];
  for (const job of jobs) {
    const idle = now - job.lastProgress;
    if (job.status !== 'running' || job.stalled !== undefined || idle < timeout * 1000) continue;
    job.stalled = job.lastProgress;
    found.push([job, Math.floor(idle / 1000)]);
  }
  return found;
}
