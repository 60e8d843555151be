import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, CacheMode, common, FormatOptions, ImageRef } from './common.js';

export const imageConvert = command({
  name: 'image-convert',
  doc: 'Copies the guest content of one image, or of several one after another, into a new or existing image of any writable format.',
  params: v.strictObject({
    ...common,
    sources: v.pipe(v.array(ImageRef), v.minLength(1)),
    target: v.strictObject({
      filename: v.optional(v.string()),
      'image-opts': v.optional(v.string()),
      /** A held image, which is written into: `create` must be false. */
      node: v.optional(v.string()),
      format: v.optional(v.string()),
      /**
       * `writeback` where absent: success says that the data is on stable storage. `unsafe`, the command line's default as
       * it is the reference's, leaves that to the host.
       */
      cache: v.optional(CacheMode),
    }),
    options: v.optional(FormatOptions),
    backing: v.optional(v.string()),
    'backing-format': v.optional(v.string()),
    compress: v.optional(v.boolean()),
    /** Runs of zeros of at least this many bytes stay unallocated; 0: none is looked for, all is written. Default 4096. */
    'sparse-size': v.optional(Bytes),
    /** Snapshot of the (single) source: an id, a name, or `snapshot.id=..,snapshot.name=..`. */
    snapshot: v.optional(v.string()),
    /** False: write into an existing target. */
    create: v.optional(v.boolean(), true),
    'target-is-zero': v.optional(v.boolean()),
    /** Copy the persistent bitmaps of the (single) source, too. */
    bitmaps: v.optional(v.boolean()),
    /** Leave out those that are inconsistent; they are an error otherwise. */
    'skip-broken-bitmaps': v.optional(v.boolean()),
    /** Read errors become zeros. */
    salvage: v.optional(v.boolean()),
    /** Bytes a second. */
    'rate-limit': v.optional(Bytes),
    /** Requests in flight, 1 to 16. */
    parallel: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(16))),
    'out-of-order': v.optional(v.boolean()),
    /** Ask the host to copy (copy_file_range) where it can. */
    'copy-offloading': v.optional(v.boolean()),
    /** Leave a target that this call created where it is when the conversion fails. */
    'keep-failed': v.optional(v.boolean()),
  }),
  result: v.strictObject({
    /** Guest bytes of the target. */
    size: Bytes,
    /** Bytes read and written as data; the rest was zeros or stayed in the backing file. */
    written: Bytes,
    zeros: Bytes,
  }),
  errors: [
    'not-found',
    'access',
    'no-space',
    'locked',
    'corrupt',
    'unsupported',
    'denied',
    'invalid',
    'io',
    'cancelled',
  ],
  job: true,
});
export type ImageConvertParams = ParamsOf<typeof imageConvert>;
export type ImageConvertResult = ResultOf<typeof imageConvert>;
