import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, common, ImageRef, writeErrors } from './common.js';
import { dryRun, planned } from './dry-run.js';

export const imageResize = command({
  name: 'image-resize',
  doc: 'Changes the guest size of an image. What is added reads as zeros; what is cut off is lost, which `shrink` must allow. A dry run checks `image` (opened, locked, allowed), `size`, `resize` and `space`.',
  params: v.strictObject({
    ...common,
    image: ImageRef,
    /** Bytes: the new size, or with `relative` what to add (negative: take off). */
    size: v.pipe(v.number(), v.safeInteger()),
    relative: v.optional(v.boolean()),
    shrink: v.optional(v.boolean()),
    /** Of what is added. */
    preallocation: v.optional(v.picklist(['off', 'metadata', 'falloc', 'full'])),
    ...dryRun,
  }),
  result: v.strictObject({
    /** Guest bytes before and after. */
    before: Bytes,
    size: Bytes,
    ...planned,
  }),
  errors: [...writeErrors, 'limit'],
  job: true,
});
export type ImageResizeParams = ParamsOf<typeof imageResize>;
export type ImageResizeResult = ResultOf<typeof imageResize>;
