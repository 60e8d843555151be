/** The one list of commands. */
import { blockdevAdd, blockdevDel, blockdevReopen, queryNamedBlockNodes } from './blockdev.js';
import { ping, queryStatus, queryTraceEvents, queryVersion, shutdown } from './daemon.js';
import { eventsSubscribe, eventsUnsubscribe } from './events.js';
import { formatOptions } from './format-options.js';
import { amendOptions, imageAmend } from './image-amend.js';
import { imageBench } from './image-bench.js';
import { imageBitmap } from './image-bitmap.js';
import { imageCheck } from './image-check.js';
import { imageCommit } from './image-commit.js';
import { imageCompare } from './image-compare.js';
import { imageConvert } from './image-convert.js';
import { imageCreate } from './image-create.js';
import { imageDd } from './image-dd.js';
import { imageInfo } from './image-info.js';
import { imageInspect } from './image-inspect.js';
import { imageMap } from './image-map.js';
import { imageMeasure } from './image-measure.js';
import { imageRebase } from './image-rebase.js';
import { imageResize } from './image-resize.js';
import { imageSnapshot } from './image-snapshot.js';
import { queryImageUsers } from './image-users.js';
import {
  jobCancel,
  jobDismiss,
  jobFinalize,
  jobPause,
  jobResume,
  jobSetSpeed,
  jobWait,
  queryJobs,
} from './jobs.js';

export const operations = {
  'image-create': imageCreate,
  'image-info': imageInfo,
  'image-inspect': imageInspect,
  'image-convert': imageConvert,
  'image-check': imageCheck,
  'image-map': imageMap,
  'image-compare': imageCompare,
  'image-commit': imageCommit,
  'image-rebase': imageRebase,
  'image-measure': imageMeasure,
  'image-dd': imageDd,
  'image-bench': imageBench,
  'image-amend': imageAmend,
  'amend-options': amendOptions,
  'image-bitmap': imageBitmap,
  'image-resize': imageResize,
  'image-snapshot': imageSnapshot,
  'format-options': formatOptions,
} as const;

export type OperationName = keyof typeof operations;

/** Everything that can be called. Operations take `job` (JobOptions in jobs.ts) beside their own params. */
export const commands = {
  ...operations,
  'blockdev-add': blockdevAdd,
  'blockdev-del': blockdevDel,
  'blockdev-reopen': blockdevReopen,
  'query-named-block-nodes': queryNamedBlockNodes,
  'query-image-users': queryImageUsers,
  'query-jobs': queryJobs,
  'job-pause': jobPause,
  'job-resume': jobResume,
  'job-cancel': jobCancel,
  'job-set-speed': jobSetSpeed,
  'job-finalize': jobFinalize,
  'job-dismiss': jobDismiss,
  'job-wait': jobWait,
  'events-subscribe': eventsSubscribe,
  'events-unsubscribe': eventsUnsubscribe,
  ping,
  'query-version': queryVersion,
  'query-status': queryStatus,
  'query-trace-events': queryTraceEvents,
  shutdown,
} as const;

export type CommandName = keyof typeof commands;
