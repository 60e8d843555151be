import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, common, ImageRef, writeErrors } from './common.js';
import { dryRun, planned } from './dry-run.js';

const BitmapAction = v.variant('action', [
  v.strictObject({ action: v.picklist(['add', 'remove', 'clear', 'enable', 'disable']) }),
  /** Adds what is dirty in `source`, a bitmap of the source image, or of the image itself where none is given. */
  v.strictObject({ action: v.literal('merge'), source: v.string() }),
]);
export type BitmapAction = v.InferOutput<typeof BitmapAction>;

export const imageBitmap = command({
  name: 'image-bitmap',
  doc: 'Changes a persistent bitmap of an image: one action after the other. What was done before one fails stays. A dry run checks `image` (opened, locked, allowed), `source` (likewise), `actions` and `space`.',
  params: v.strictObject({
    ...common,
    image: ImageRef,
    bitmap: v.string(),
    actions: v.pipe(v.array(BitmapAction), v.minLength(1)),
    /** Of `add`, in bytes: a power of two, at least 512. */
    granularity: v.optional(Bytes),
    /** Where `merge` finds its bitmaps. */
    source: v.optional(ImageRef),
    ...dryRun,
  }),
  result: v.strictObject({
    bitmaps: v.array(v.strictObject({ name: v.string(), granularity: Bytes, flags: v.array(v.string()) })),
    ...planned,
  }),
  errors: [...writeErrors, 'limit'],
  job: true,
});
export type ImageBitmapParams = ParamsOf<typeof imageBitmap>;
export type ImageBitmapResult = ResultOf<typeof imageBitmap>;
