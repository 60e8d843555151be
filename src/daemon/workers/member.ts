/** A worker thread of the pool, and what it is busy with. */
import type { Worker } from 'node:worker_threads';
import type { ControlMessage, RunMessage, ToPoolWorker } from './messages.js';
import type { JobListener } from './pool.js';

export interface Work {
  readonly message: RunMessage;
  readonly listener: JobListener;
  /** Has its thread for itself, and for long. */
  readonly long: boolean;
  /** When its thread got it, by performance.now(). */
  since: number;
  /** Told to pause: that it takes long means nothing. */
  paused: boolean;
  /** What it has been told, for the thread that it is started in again. */
  readonly told: ControlMessage[];
  /** Times that it was started again. */
  again: number;
  member: Member | undefined;
}

export interface Member {
  readonly worker: Worker;
  readonly work: Map<string, Work>;
  /** Has quick jobs, several at a time. */
  quick: boolean;
  /** By performance.now(): when it last got a quick job. */
  lastQuick: number;
  /** By performance.now(): when its last job ended. */
  lastWork: number;
  /** What it has run may have left a large heap behind. */
  used: boolean;
  short: number;
  gone: boolean;
  killed: string | undefined;
  /** What it is to be sent with the next message. */
  unsent: ToPoolWorker[];
}

export function newMember(worker: Worker): Member {
  return {
    ...{ worker, work: new Map(), quick: false, lastQuick: Number.NEGATIVE_INFINITY },
    ...{
      lastWork: Number.NEGATIVE_INFINITY,
      used: false,
      short: 0,
      gone: false,
      killed: undefined,
      unsent: [],
    },
  };
}

export function flush(member: Member): void {
  const messages = member.unsent;
  if (messages.length === 0 || member.gone) return;
  member.unsent = [];
  member.worker.postMessage(messages);
}

/** Jobs that arrive in one turn of the event loop go to a thread in one message: it costs more than what is in it. */
export function give(member: Member, work: Work): void {
  work.member = member;
  work.since = performance.now();
  member.work.set(work.message.job, work);
  if (member.unsent.length === 0 && !work.long) setImmediate(flush, member);
  member.unsent.push(work.long ? { ...work.message, long: true } : work.message);
  if (work.long) flush(member);
}

export function control(work: Work, message: ControlMessage): void {
  if (!work.long) {
    work.told.push(message);
    if (message.type === 'pause') work.paused = true;
    if (message.type === 'resume') {
      work.paused = false;
      work.since = performance.now();
    }
  }
  tell(work, message);
}

/** Once more, to the thread that it was started again in. */
export function repeat(work: Work): void {
  for (const message of work.told) tell(work, message);
}

function tell({ member, message }: Work, told: ControlMessage): void {
  const { job } = message;
  if (member?.work.get(job)?.message !== message) return;
  member.unsent.push({ type: 'control', job, control: told });
  flush(member);
}
