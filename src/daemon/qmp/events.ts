/** The daemon's events as QMP's: JOB_STATUS_CHANGE with the states that QEMU's jobs go through, and BLOCK_JOB_* beside it. */
import type { JobInfo, JobStatus } from '../../protocol/commands/jobs.js';
import type { PublishedEvent } from '../sessions/events.js';
import { blockJobInfo, isBlockJob, jobType } from './job-info.js';
import { eventText } from './reply.js';

export interface QmpEvents {
  /** Texts that an event of the daemon is to QMP's clients, in order. */
  translate(event: PublishedEvent): string[];
  /** Nobody listens: what was remembered to tell the next event right is not needed. */
  reset(): void;
}

/** @param info what is known of a job; undefined where it is forgotten. */
export function createEvents(info: (id: string) => JobInfo | undefined): QmpEvents {
  const last = new Map<string, JobStatus>();

  function* statusChange(id: string, status: JobStatus): Generator<string> {
    const before = last.get(id);
    if (status === 'null') last.delete(id);
    else last.set(id, status);
    const job = info(id);
    const tell = (state: JobStatus) => eventText('JOB_STATUS_CHANGE', { id, status: state });
    if (status === 'concluded') {
      const failed = job?.error !== undefined;
      // QEMU's jobs go through these on their way, also where nobody waits in them.
      if (failed && before !== 'aborting') yield tell('aborting');
      if (!failed && before !== 'pending') {
        if (before !== 'waiting') yield tell('waiting');
        yield tell('pending');
      }
      if (job !== undefined && isBlockJob(job)) yield blockJobEnd(job);
    }
    yield tell(status);
    if (job === undefined || !isBlockJob(job)) return;
    if (status === 'pending') yield eventText('BLOCK_JOB_PENDING', { type: jobType(job.type), id });
    if (status === 'ready') yield eventText('BLOCK_JOB_READY', progressOf(job));
  }

  return {
    reset: () => last.clear(),
    translate(event) {
      if (event.name === 'JOB_STATUS_CHANGE') {
        const { id, status } = dataOf(event) as { id: string; status: JobStatus };
        return [...statusChange(id, status)];
      }
      if (event.name === 'BLOCKDEV_LOST') return [eventText('X_IMGD_BLOCKDEV_LOST', dataOf(event))];
      return [];
    },
  };
}

function dataOf(event: PublishedEvent): object {
  return (JSON.parse(`{${event.json()}}`) as { data: object }).data;
}

function progressOf(job: JobInfo): object {
  const { type, device, len, offset, speed } = blockJobInfo(job);
  return { type, device, len, offset, speed };
}

function blockJobEnd(job: JobInfo): string {
  if (job.failure?.data?.kind === 'cancelled') return eventText('BLOCK_JOB_CANCELLED', progressOf(job));
  return eventText('BLOCK_JOB_COMPLETED', { ...progressOf(job), error: job.error });
}
