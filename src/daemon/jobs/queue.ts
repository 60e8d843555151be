/** Jobs that wait for their turn: the more urgent first, then in order of arrival; and how busy each storage device is. */
import type { Job } from './job.js';

/** What a queued job waits for. */
export type WaitsFor = 'worker' | 'jobs' | 'device' | 'resume';

export class JobQueue implements Iterable<Job> {
  readonly #jobs: Job[] = [];
  readonly #busy = new Map<number, number>();

  [Symbol.iterator](): Iterator<Job> {
    // A copy: jobs leave the queue while it is gone through.
    return [...this.#jobs][Symbol.iterator]();
  }

  add(job: Job): void {
    const at = this.#jobs.findIndex(({ priority }) => priority < job.priority);
    this.#jobs.splice(at < 0 ? this.#jobs.length : at, 0, job);
  }

  /** False where it is not in the queue. */
  remove(job: Job): boolean {
    const at = this.#jobs.indexOf(job);
    if (at >= 0) this.#jobs.splice(at, 1);
    return at >= 0;
  }

  /** 1: the next. */
  positions(): Map<Job, number> {
    return new Map(this.#jobs.map((job, at) => [job, at + 1]));
  }

  /** `worker` where nothing else is in the way. @param perDevice jobs on one device at once; 0: any number. */
  waitsFor(job: Job, perDevice: number): WaitsFor {
    if (job.pauseAsked) return 'resume';
    if (job.after.size > 0) return 'jobs';
    if (job.devices === undefined) return 'device';
    if (perDevice > 0 && job.devices.some((each) => (this.#busy.get(each) ?? 0) >= perDevice))
      return 'device';
    return 'worker';
  }

  /** A job that was taken out of the queue begins to use its devices, or ends using them. */
  use(job: Job, by: 1 | -1): void {
    for (const device of job.devices ?? []) {
      const count = (this.#busy.get(device) ?? 0) + by;
      if (count > 0) this.#busy.set(device, count);
      else this.#busy.delete(device);
    }
  }
}
