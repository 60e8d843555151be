import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { common, FormatOptions, ImageRef, writeErrors } from './common.js';
import { dryRun, planned } from './dry-run.js';

export const imageAmend = command({
  name: 'image-amend',
  doc: 'Changes options of an existing image in place: what is given, in an order in which the image is sound at every instant. A dry run checks `image` (opened, locked, allowed), `options`, `amend` and `space`.',
  params: v.strictObject({
    ...common,
    image: ImageRef,
    options: FormatOptions,
    /** Allow changes that may make data unreadable. No format has such options so far. */
    force: v.optional(v.boolean()),
    ...dryRun,
  }),
  result: v.strictObject({ ...planned }),
  errors: writeErrors,
  job: true,
});
export type ImageAmendParams = ParamsOf<typeof imageAmend>;
export type ImageAmendResult = ResultOf<typeof imageAmend>;

export const amendOptions = command({
  name: 'amend-options',
  doc: 'Tells which options of an image can be changed, sorted by name: those of a `format`, or of the format of an `image`.',
  params: v.strictObject({
    ...common,
    format: v.optional(v.string()),
    image: v.optional(ImageRef),
  }),
  result: v.strictObject({
    format: v.string(),
    options: v.array(
      v.strictObject({
        name: v.string(),
        type: v.picklist(['string', 'bool', 'number', 'size']),
        help: v.string(),
      }),
    ),
  }),
  errors: ['not-found', 'access', 'unsupported', 'denied', 'invalid'],
  job: true,
});
export type AmendOptionsParams = ParamsOf<typeof amendOptions>;
export type AmendOptionsResult = ResultOf<typeof amendOptions>;
