import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, CacheMode, common, ImageRef, writeErrors } from './common.js';
import { dryRun, planned } from './dry-run.js';

export const imageRebase = command({
  name: 'image-rebase',
  doc: 'Gives an image another backing file, or none. What the old backing file has and the new one has not is copied into the image first, so that it reads as before; with `unsafe` only the name is changed, and neither file needs to exist. A dry run checks `image` (opened, locked, allowed), `options`, `backing` (opened), `changeable`, `copy` (places for what may differ), `name` (put into the image) and `space`.',
  params: v.strictObject({
    ...common,
    image: ImageRef,
    /** The new backing file, relative to the image's folder; absent: none. */
    backing: v.optional(v.string()),
    'backing-format': v.optional(v.string()),
    'backing-cache': v.optional(CacheMode),
    /** Open the new backing file although another process writes it. */
    'backing-force-share': v.optional(v.boolean()),
    unsafe: v.optional(v.boolean()),
    /** What is copied is compressed. */
    compress: v.optional(v.boolean()),
    ...dryRun,
  }),
  result: v.strictObject({
    /** Bytes copied from the old backing file, and bytes of zeros that hide the new one's. */
    written: Bytes,
    zeros: Bytes,
    ...planned,
  }),
  errors: writeErrors,
  job: true,
});
export type ImageRebaseParams = ParamsOf<typeof imageRebase>;
export type ImageRebaseResult = ResultOf<typeof imageRebase>;
