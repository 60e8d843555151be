import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, common, ImageRef, readErrors } from './common.js';

/** QAPI's MapEntry. */
export const MapEntry = v.strictObject({
  start: Bytes,
  length: Bytes,
  depth: v.number(),
  present: v.boolean(),
  zero: v.boolean(),
  data: v.boolean(),
  compressed: v.boolean(),
  offset: v.optional(Bytes),
  /** The file that `offset` is in: what the human form shows. */
  filename: v.optional(v.string()),
});
export type MapEntry = v.InferOutput<typeof MapEntry>;

export const imageMap = command({
  name: 'image-map',
  doc: 'Tells which runs of the guest disk are data, zeros or unallocated, at what depth of the backing chain, and where in the file. With `stream`, entries arrive as `JOB_OUTPUT` events in batches and the result holds only their count; without, a map of more than 100,000 entries is refused with `limit`.',
  params: v.strictObject({
    ...common,
    image: ImageRef,
    'start-offset': v.optional(Bytes),
    'max-length': v.optional(Bytes),
    stream: v.optional(v.boolean()),
  }),
  result: v.strictObject({ count: v.number(), entries: v.optional(v.array(MapEntry)) }),
  errors: [...readErrors, 'limit'],
  job: true,
});
export type ImageMapParams = ParamsOf<typeof imageMap>;
export type ImageMapResult = ResultOf<typeof imageMap>;
