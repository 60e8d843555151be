import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, common, ImageRef, readErrors } from './common.js';

/** QAPI's ImageInfo; the keys in the order in which the reference prints them. */
export const ImageInfo = v.looseObject({
  filename: v.string(),
  format: v.string(),
  'virtual-size': Bytes,
  'actual-size': v.optional(Bytes),
  'cluster-size': v.optional(Bytes),
  encrypted: v.optional(v.boolean()),
  compressed: v.optional(v.boolean()),
  'dirty-flag': v.optional(v.boolean()),
  'backing-filename': v.optional(v.string()),
  'full-backing-filename': v.optional(v.string()),
  'backing-filename-format': v.optional(v.string()),
  snapshots: v.optional(v.array(v.looseObject({ id: v.string(), name: v.string() }))),
  'format-specific': v.optional(v.looseObject({ type: v.string(), data: v.looseObject({}) })),
  children: v.optional(v.array(v.looseObject({ name: v.string(), info: v.looseObject({}) }))),
});
export type ImageInfo = v.InferOutput<typeof ImageInfo>;

export const imageInfo = command({
  name: 'image-info',
  doc: 'Tells what an image is: format, sizes, backing file, snapshots, format-specific fields, child nodes. With `backing-chain`, of every image in the chain, top first.',
  params: v.strictObject({
    ...common,
    image: ImageRef,
    'backing-chain': v.optional(v.boolean()),
  }),
  result: v.strictObject({ images: v.array(ImageInfo) }),
  errors: readErrors,
  job: true,
});
export type ImageInfoParams = ParamsOf<typeof imageInfo>;
export type ImageInfoResult = ResultOf<typeof imageInfo>;
