import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, common } from './common.js';

/** One thing that was looked at. */
export const SafetyCheck = v.strictObject({
  /**
   * `format`: what it is, and that it is not something else as well. `header`: the format's own checks. `backing-file`,
   * `data-file`, `extents`: whether it refers to other files. `features`: what this program does not know of.
   * `encryption`. `size`. `partition-table`: what the guest's first sectors say, as far as they are in the file.
   */
  name: v.picklist([
    'format',
    'header',
    'backing-file',
    'data-file',
    'extents',
    'features',
    'encryption',
    'size',
    'partition-table',
  ]),
  /** `fail`: not safe to be used without the caller's knowing better. `skip`: could not be looked at. */
  status: v.picklist(['pass', 'warn', 'fail', 'skip']),
  text: v.string(),
  /** Files that the image refers to, as it names them; formats that claim it. */
  names: v.optional(v.array(v.string())),
});
export type SafetyCheck = v.InferOutput<typeof SafetyCheck>;

export const imageInspect = command({
  name: 'image-inspect',
  doc: 'Says whether an image file from somebody else is safe to be used, by named checks. Only the file itself is opened: nothing that it refers to, and no lock is taken. `safe`: no check failed, none that matters was skipped.',
  params: v.strictObject({
    ...common,
    /** A path, taken as it is: no protocol, no `json:`. */
    filename: v.string(),
    /** What it is said to be; anything else fails. */
    format: v.optional(v.string()),
    /** Guest bytes that are accepted. */
    'max-size': v.optional(Bytes),
  }),
  result: v.strictObject({
    filename: v.string(),
    format: v.string(),
    'virtual-size': v.optional(Bytes),
    'file-size': Bytes,
    safe: v.boolean(),
    checks: v.array(SafetyCheck),
  }),
  errors: ['not-found', 'access', 'denied', 'invalid', 'io'],
  job: true,
});
export type ImageInspectParams = ParamsOf<typeof imageInspect>;
export type ImageInspectResult = ResultOf<typeof imageInspect>;
