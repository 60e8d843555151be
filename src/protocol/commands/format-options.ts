import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { common } from './common.js';

export const formatOptions = command({
  name: 'format-options',
  doc: "Tells which options a format takes when an image of it is created, sorted by name. With `filename`, those of the file's protocol too.",
  params: v.strictObject({
    ...common,
    format: v.string(),
    /** What would be created; need not exist. */
    filename: v.optional(v.string()),
  }),
  result: v.strictObject({
    options: v.array(
      v.strictObject({
        name: v.string(),
        type: v.picklist(['string', 'bool', 'number', 'size']),
        help: v.string(),
        default: v.optional(v.union([v.string(), v.number(), v.boolean()])),
      }),
    ),
  }),
  errors: ['unsupported', 'invalid'],
  job: true,
});
export type FormatOptionsParams = ParamsOf<typeof formatOptions>;
export type FormatOptionsResult = ResultOf<typeof formatOptions>;
