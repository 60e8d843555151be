import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, common, ImageRef, writeErrors } from './common.js';
import { dryRun, planned } from './dry-run.js';

export const imageDd = command({
  name: 'image-dd',
  doc: 'Copies part of the guest content of an image, in blocks, into a new image. An existing file of that name is overwritten. What is copied is written as data, zeros too. A dry run checks `format`, `image` (opened, locked, allowed), `target` (name, folder, lock), `layout` (the image is made in memory) and `space`.',
  params: v.strictObject({
    ...common,
    image: ImageRef,
    /** `format`: raw where absent. */
    target: v.strictObject({ filename: v.string(), format: v.optional(v.string()) }),
    /** Bytes of a block; 512 where absent. */
    'block-size': v.optional(v.pipe(Bytes, v.minValue(1), v.maxValue(2147483647))),
    /** Where reading ends, in blocks from the start of the image; its end where absent. */
    count: v.optional(Bytes),
    /** Blocks at the start of the image that are left out. */
    skip: v.optional(Bytes),
    ...dryRun,
  }),
  result: v.strictObject({
    /** Guest bytes that were copied. */
    copied: Bytes,
    ...planned,
  }),
  errors: writeErrors,
  job: true,
});
export type ImageDdParams = ParamsOf<typeof imageDd>;
export type ImageDdResult = ResultOf<typeof imageDd>;
