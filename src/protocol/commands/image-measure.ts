import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, common, FormatOptions, ImageRef, readErrors } from './common.js';

/** A count of bytes up to 2^63: a number, or decimal digits where a number would not be exact. */
const LargeBytes = v.union([Bytes, v.pipe(v.string(), v.regex(/^[0-9]{16,19}$/))]);

/** QAPI's BlockMeasureInfo. */
export const Measurement = v.strictObject({
  /** What the new file takes with the present content. */
  required: LargeBytes,
  /** What it takes when every guest byte is written. */
  'fully-allocated': LargeBytes,
  /** What the source's persistent bitmaps take on top; absent where they cannot be there. */
  bitmaps: v.optional(Bytes),
});
export type Measurement = v.InferOutput<typeof Measurement>;

export const imageMeasure = command({
  name: 'image-measure',
  doc: 'Tells how large the file of a new image will be: one of `size` bytes, or one with the content of `image`. No guest data is read and nothing is written.',
  params: v.strictObject({
    ...common,
    /** Either this or `size`. */
    image: v.optional(ImageRef),
    size: v.optional(LargeBytes),
    /** Format of the new image; raw where absent. */
    format: v.optional(v.string()),
    options: v.optional(FormatOptions),
    /** Snapshot of `image`: an id, a name, or `snapshot.id=..,snapshot.name=..`. */
    snapshot: v.optional(v.string()),
  }),
  result: Measurement,
  errors: [...readErrors, 'limit'],
  job: true,
});
export type ImageMeasureParams = ParamsOf<typeof imageMeasure>;
export type ImageMeasureResult = ResultOf<typeof imageMeasure>;
