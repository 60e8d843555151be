/** Errors as clients see them: a JSON-RPC code for each kind, and what `data` holds. */
import * as v from 'valibot';
import { RpcCode } from './json.js';

/**
 * The code of each kind. The first group is the engine's (its `ErrorKind`), about images; the second the daemon's, about
 * jobs; the third about the connection. Codes are from JSON-RPC's range for servers and never change their meaning.
 */
export const codeOfKind = {
  'not-found': -32001,
  exists: -32002,
  access: -32003,
  'no-space': -32004,
  io: -32005,
  locked: -32006,
  denied: -32007,
  invalid: -32008,
  unsupported: -32009,
  corrupt: -32010,
  limit: -32011,
  'read-only': -32012,
  cancelled: -32013,
  internal: RpcCode.internal,

  /** No job has that id. */
  'job-not-found': -32030,
  /** The id is in use by a job with other parameters. */
  'job-exists': -32031,
  /** The job is in a state that does not take this command. */
  'job-state': -32032,
  /** More unfinished jobs than the daemon keeps. */
  'too-many-jobs': -32033,
  /** The worker that ran the job died: the job is lost, the daemon is not. */
  'worker-lost': -32034,
  /** The daemon is on its way out and starts nothing. */
  'shutting-down': -32035,
  /** The daemon was killed while it had the job; told by the next one. */
  interrupted: -32036,
  /** A job that this one was to come after has failed. */
  dependency: -32037,

  parse: RpcCode.parse,
  'invalid-request': RpcCode.invalidRequest,
  'unknown-method': RpcCode.methodNotFound,
  /** A member of `params` is wrong; `data.member` names it. */
  'invalid-params': RpcCode.invalidParams,
  'message-too-long': -32040,
  'too-deep': -32041,
  'batch-too-long': -32042,
  'too-many-calls': -32043,
  'too-many-connections': -32044,
  'too-many-subscriptions': -32045,
  'subscription-not-found': -32046,
  /** Events from before the oldest that is still remembered were asked for. */
  'events-too-old': -32047,
  /** The caller's role does not reach as far as the command; `data.check` names the role that is needed. */
  forbidden: -32048,
} as const;

export type WireErrorKind = keyof typeof codeOfKind;

/** `data` of every error that imgd answers with. */
export const ErrorData = v.looseObject({
  /** QMP's error class. */
  class: v.string(),
  kind: v.string(),
  /** The image file, where the error is about one, and the byte offset in it. */
  path: v.optional(v.string()),
  offset: v.optional(v.number()),
  /** Symbolic host error: `ENOSPC`. */
  errno: v.optional(v.string()),
  /** Further lines for people. */
  hint: v.optional(v.string()),
  /** The safety check or lock that refused. */
  check: v.optional(v.string()),
  /** Who holds the lock that was not to be had, where that could be learnt. */
  holder: v.optional(
    v.strictObject({
      pid: v.number(),
      command: v.string(),
      /** Of this daemon: the held node, or the job, that is in the way. */
      node: v.optional(v.string()),
      job: v.optional(v.string()),
    }),
  ),
  operation: v.optional(v.string()),
  /** The member of `params` that is wrong: `image.filename`. */
  member: v.optional(v.string()),
  job: v.optional(v.string()),
});
export type ErrorData = v.InferOutput<typeof ErrorData>;

export const WireError = v.strictObject({
  code: v.number(),
  message: v.string(),
  data: v.optional(ErrorData),
});
export type WireError = v.InferOutput<typeof WireError>;

/** QMP's class for a kind. */
export function classOfKind(kind: WireErrorKind): string {
  return kind === 'unknown-method' ? 'CommandNotFound' : 'GenericError';
}

/** What an error may say beyond its kind; members that are undefined are left out on the wire. */
export type ErrorDetails = {
  readonly [M in keyof Omit<ErrorData, 'class' | 'kind'>]?: ErrorData[M] | undefined;
};

/** An error as it goes over the wire. */
export function wireError(kind: WireErrorKind, message: string, more: ErrorDetails = {}): WireError {
  const data: ErrorData = { class: classOfKind(kind), kind };
  for (const [member, value] of Object.entries(more)) if (value !== undefined) data[member] = value;
  return { code: codeOfKind[kind], message, data };
}
