import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, common, ImageRef, readErrors } from './common.js';
import { dryRun, planned } from './dry-run.js';

/** QAPI's ImageCheck; counts that are zero are absent, but for `check-errors`. */
export const ImageCheck = v.strictObject({
  filename: v.string(),
  format: v.string(),
  'check-errors': v.number(),
  'image-end-offset': v.optional(Bytes),
  corruptions: v.optional(v.number()),
  leaks: v.optional(v.number()),
  'corruptions-fixed': v.optional(v.number()),
  'leaks-fixed': v.optional(v.number()),
  'total-clusters': v.optional(v.number()),
  'allocated-clusters': v.optional(v.number()),
  'fragmented-clusters': v.optional(v.number()),
  'compressed-clusters': v.optional(v.number()),
});
export type ImageCheck = v.InferOutput<typeof ImageCheck>;

export const imageCheck = command({
  name: 'image-check',
  doc: 'Checks the consistency of an image and repairs leaks, or everything, if asked. What is found is told line by line in `JOB_OUTPUT` events. Where something was repaired the image is checked once more; `check` is the state after, `repaired` the first pass. A dry run, of repairs alone, checks `image` (opened, locked, allowed), `repair` and `space`.',
  params: v.strictObject({
    ...common,
    image: ImageRef,
    repair: v.optional(v.picklist(['leaks', 'all'])),
    ...dryRun,
  }),
  result: v.strictObject({ check: ImageCheck, repaired: v.optional(ImageCheck), ...planned }),
  errors: readErrors,
  job: true,
});
export type ImageCheckParams = ParamsOf<typeof imageCheck>;
export type ImageCheckResult = ResultOf<typeof imageCheck>;
