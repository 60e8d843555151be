/** The daemon itself. */
import * as v from 'valibot';
import { command } from '../command.js';

const Nothing = v.strictObject({});

export const ping = command({
  name: 'ping',
  doc: 'Answers at once.',
  params: Nothing,
  result: Nothing,
  errors: [],
  job: false,
});

export const queryVersion = command({
  name: 'query-version',
  doc: 'Tells the version of imgd, and of the QEMU whose behaviour it follows (as QMP does).',
  params: Nothing,
  result: v.strictObject({
    version: v.string(),
    qemu: v.strictObject({ major: v.number(), minor: v.number(), micro: v.number() }),
    package: v.string(),
  }),
  errors: [],
  job: false,
});

export const queryStatus = command({
  name: 'query-status',
  doc: 'Tells how the daemon is: jobs by state, workers, held images, connections, memory, time since its start.',
  params: Nothing,
  result: v.strictObject({
    status: v.picklist(['running', 'stopping']),
    pid: v.number(),
    /** Seconds. */
    uptime: v.number(),
    /** Number of jobs in each state that has any. */
    jobs: v.record(v.string(), v.number()),
    workers: v.strictObject({
      busy: v.number(),
      idle: v.number(),
      /** Jobs that run at once; further ones queue. */
      limit: v.number(),
      /** Workers that died under a job since the start. */
      lost: v.number(),
    }),
    /** Images that are held: nodes of blockdev-add. */
    nodes: v.number(),
    connections: v.number(),
    subscriptions: v.number(),
    /** Number of the newest event. */
    seq: v.number(),
    /** Bytes. */
    memory: v.strictObject({ rss: v.number() }),
  }),
  errors: [],
  job: false,
});

export const queryTraceEvents = command({
  name: 'query-trace-events',
  doc: "Tells which events an operation's `trace` can name, and of what their lines consist.",
  params: Nothing,
  result: v.array(v.strictObject({ name: v.string(), doc: v.string() })),
  errors: [],
  job: false,
});

export const shutdown = command({
  name: 'shutdown',
  doc: 'Ends the daemon: nothing new is started, jobs are cancelled, or with `drain` finished first, then it exits.',
  params: v.strictObject({ drain: v.optional(v.boolean(), false) }),
  result: Nothing,
  errors: [],
  job: false,
});
