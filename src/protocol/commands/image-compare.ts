import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, common, ImageRef, readErrors } from './common.js';

export const imageCompare = command({
  name: 'image-compare',
  doc: 'Tells whether two images have the same guest content. Different sizes are equal where the rest of the larger is zeros, unless `strict`, which compares sizes and allocation too.',
  params: v.strictObject({
    ...common,
    a: ImageRef,
    b: ImageRef,
    strict: v.optional(v.boolean()),
  }),
  result: v.strictObject({
    identical: v.boolean(),
    /** Where not identical: what differs first, and where. */
    reason: v.optional(v.picklist(['content', 'size', 'allocation'])),
    offset: v.optional(Bytes),
    /** The sentence that qemu-img prints. */
    text: v.string(),
  }),
  errors: [...readErrors, 'io'],
  job: true,
});
export type ImageCompareParams = ParamsOf<typeof imageCompare>;
export type ImageCompareResult = ResultOf<typeof imageCompare>;
