/** What both entries export. */
export type { EventFilter } from '../../src/protocol/commands/events.js';
export type { JobInfo, JobProgress, JobStatus } from '../../src/protocol/commands/jobs.js';
export type { Client, ClientOptions, StartOptions } from './client.js';
export { type EventGap, ImgdError, type ImgdErrorKind, isImgdError } from './errors.js';
export type { EventStream, SubscribeOptions } from './events.js';
export type { Job } from './jobs.js';
export type { ConnectionState, ReconnectOptions } from './link.js';
export type {
  CallOptions,
  CommandName,
  ImgdEvent,
  JobSettings,
  OperationName,
  OperationOptions,
  Params,
  Result,
  SubscribableEvent,
} from './types.js';
