import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { common, FormatOptions, LargeBytes } from './common.js';
import { dryRun, planned } from './dry-run.js';

export const imageCreate = command({
  name: 'image-create',
  doc: 'Creates an image file, empty or on top of a backing file. An existing file of that name is overwritten. A dry run checks `format`, `options`, `backing`, `size`, `target` (name, folder, lock), `layout` (the image is made in memory) and `space`.',
  params: v.strictObject({
    ...common,
    filename: v.string(),
    /** A node of a file that the daemon holds, which takes the image in place of a new file; `filename` is then its name. */
    node: v.optional(v.string()),
    format: v.optional(v.string(), 'raw'),
    /** Guest size in bytes; with a backing file the default is that file's. */
    size: v.optional(LargeBytes),
    options: v.optional(FormatOptions),
    backing: v.optional(v.string()),
    'backing-format': v.optional(v.string()),
    /** Do not open the backing file: it need not exist, and `size` must be given. */
    'no-backing-check': v.optional(v.boolean()),
    /** Make it under a temporary name in its folder and put it in its place when it is whole. */
    atomic: v.optional(v.boolean()),
    ...dryRun,
  }),
  result: v.strictObject({
    filename: v.string(),
    format: v.string(),
    size: LargeBytes,
    /** Every create option with a value, in the format's order, as the `Formatting ...` line shows them. */
    options: FormatOptions,
    ...planned,
  }),
  errors: ['invalid', 'unsupported', 'not-found', 'access', 'no-space', 'locked', 'denied'],
  job: true,
});
export type ImageCreateParams = ParamsOf<typeof imageCreate>;
export type ImageCreateResult = ResultOf<typeof imageCreate>;
