/** What the daemon tells of itself at GET /metrics. */
import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks';
import type { Job, Outcome } from '../jobs/job.js';
import type { JobManager } from '../jobs/manager.js';
import type { Transport } from '../listeners/transport.js';
import type { EventBus } from '../sessions/events.js';
import { VERSION } from '../version.js';
import type { Pool } from '../workers/pool.js';
import { Exposition, type Sample } from './exposition.js';

export interface MetricsSources {
  readonly jobs: Pick<JobManager, 'list'>;
  readonly bus: Pick<EventBus, 'seq' | 'subscriptions' | 'counts'>;
  readonly pool: Pick<Pool, 'busy' | 'idle' | 'lost'>;
  connections(): Iterable<{ readonly kind: string; readonly waiting: number }>;
}

/** Seconds: from a look at a header to a night's copy. */
const DURATIONS = [0.01, 0.05, 0.25, 1, 5, 30, 120, 600, 3600, 14_400];
const TRANSPORTS: readonly Transport['kind'][] = ['unix', 'websocket', 'http'];
const RESOLUTION_MS = 10;
const NS = 1e9;

export class Metrics {
  readonly #exposition = new Exposition();
  readonly #concluded;
  readonly #durations;
  readonly #bytes;
  readonly #locks;
  readonly #calls;
  readonly #refused;
  #delay: IntervalHistogram | undefined;

  constructor(sources: MetricsSources) {
    const { jobs, bus, pool } = sources;
    const all = this.#exposition;
    all.gauge('imgd_info', 'The version that runs.', () => [[{ version: VERSION }, 1]]);
    all.gauge('imgd_uptime_seconds', 'Time since the start.', () => process.uptime());
    all.gauge('imgd_jobs', 'Jobs that are known, by operation and state.', () =>
      countBy(jobs.list().map(({ type, status }) => ({ operation: type, status }))),
    );
    all.gauge('imgd_jobs_queued', 'Jobs that wait for a worker.', () =>
      jobs.list().reduce((sum, job) => sum + (job['queue-position'] === undefined ? 0 : 1), 0),
    );
    this.#concluded = all.counter(
      'imgd_jobs_concluded_total',
      'Jobs that have ended, by operation and outcome.',
    );
    this.#durations = all.histogram(
      'imgd_job_duration_seconds',
      'Time from the start of a job to its end, without its time in the queue.',
      DURATIONS,
    );
    this.#bytes = all.counter(
      'imgd_job_bytes_total',
      'Bytes that ended jobs got through: written as data, and found to be zeros.',
    );
    this.#locks = all.counter(
      'imgd_locks_refused_total',
      'Uses of images that a lock of somebody else refused.',
    );
    this.#calls = all.counter(
      'imgd_calls_total',
      'Calls by method and outcome: ok, or the kind of the error.',
    );
    this.#refused = all.counter(
      'imgd_requests_refused_total',
      'WebSocket and HTTP requests refused, by reason.',
    );
    all.gauge('imgd_workers', 'Worker threads.', () => [
      [{ state: 'busy' }, pool.busy],
      [{ state: 'idle' }, pool.idle],
    ]);
    all.gauge('imgd_workers_lost_total', 'Workers that died under a job.', () => pool.lost, 'counter');
    all.gauge('imgd_connections', 'Connections, by transport; of HTTP, requests in work.', () => {
      const open = [...sources.connections()];
      return TRANSPORTS.map((transport) => [
        { transport },
        open.reduce((sum, { kind }) => sum + (kind === transport ? 1 : 0), 0),
      ]);
    });
    all.gauge('imgd_outbox_bytes', 'Answers and events that clients have not taken yet.', () =>
      [...sources.connections()].reduce((sum, { waiting }) => sum + waiting, 0),
    );
    all.gauge('imgd_subscriptions', 'Subscriptions to events.', () => bus.subscriptions);
    all.gauge('imgd_events_total', 'Events so far.', () => bus.seq, 'counter');
    all.gauge(
      'imgd_events_lagged_total',
      'Progress events left out because a subscriber reads too slowly.',
      () => bus.counts.lagged,
      'counter',
    );
    all.gauge(
      'imgd_subscriptions_ended_total',
      'Subscriptions that were ended because their reader was too slow.',
      () => bus.counts.ended,
      'counter',
    );
    all.gauge(
      'imgd_event_loop_delay_seconds',
      'How late the main thread comes to what it has to do, since the last look.',
      () => this.#eventLoop(),
    );
    all.gauge('imgd_resident_memory_bytes', 'Memory of the process.', () => process.memoryUsage.rss());
    all.gauge(
      'imgd_cpu_seconds_total',
      'Processor time of the process.',
      () => {
        const { user, system } = process.cpuUsage();
        return (user + system) / 1e6;
      },
      'counter',
    );
  }

  concluded(job: Job, outcome: Outcome): void {
    const { operation } = job;
    const failure = 'error' in outcome ? (outcome.error.data?.kind ?? 'internal') : undefined;
    this.#concluded.add({ operation, outcome: failure ?? 'ok' });
    if (failure === 'locked') this.#locks.add();
    if (job.started !== undefined) {
      this.#durations.observe({ operation }, ((job.concluded ?? Date.now()) - job.started) / 1000);
    }
    const { done = 0, written = done, zeros = 0 } = job.progress ?? {};
    if (written > 0) this.#bytes.add({ operation, kind: 'data' }, written);
    if (zeros > 0) this.#bytes.add({ operation, kind: 'zeros' }, zeros);
  }

  /** @param method one that exists: labels must not grow with what clients make up. */
  called(method: string, outcome: string): void {
    this.#calls.add({ method, outcome });
    // Those of jobs are counted with their jobs.
    if (outcome === 'locked' && method.startsWith('blockdev-')) this.#locks.add();
  }

  refused(reason: string): void {
    this.#refused.add({ reason });
  }

  text(): string {
    return this.#exposition.text();
  }

  /** Measured from the first look on: the timer that it takes is not for daemons that nobody looks at. */
  #eventLoop(): Sample[] {
    if (this.#delay === undefined) {
      this.#delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
      this.#delay.enable();
      return [];
    }
    const delay = this.#delay;
    if (delay.count === 0) return [];
    const samples: Sample[] = [50, 99].map((percent) => [
      { quantile: String(percent / 100) },
      delay.percentile(percent) / NS,
    ]);
    samples.push([{ quantile: '1' }, delay.max / NS]);
    delay.reset();
    return samples;
  }
}

function countBy(labels: readonly Readonly<Record<string, string>>[]): Sample[] {
  const counts = new Map<string, number>();
  for (const each of labels) {
    const key = JSON.stringify(each);
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  return [...counts].map(([key, count]) => [JSON.parse(key) as Record<string, string>, count]);
}
