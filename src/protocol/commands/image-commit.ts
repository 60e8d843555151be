import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, common, ImageRef, writeErrors } from './common.js';
import { dryRun, planned } from './dry-run.js';

export const imageCommit = command({
  name: 'image-commit',
  doc: 'Writes what an image holds of its own into its backing file, or into a layer further down, which grows where it is smaller. The image is emptied then, unless `drop` or `base` is given: the layers between image and base hold old data after. A dry run checks `image` (opened, locked, allowed), `base` (likewise, for writing), `resize`, `copy` (places in the base), `empty` and `space`.',
  params: v.strictObject({
    ...common,
    image: ImageRef,
    /** The layer to write into, by a name that the chain has for it; the backing file where absent. */
    base: v.optional(v.string()),
    /** Leave the image as it is. */
    drop: v.optional(v.boolean()),
    /** Bytes a second. */
    'rate-limit': v.optional(Bytes),
    ...dryRun,
  }),
  result: v.strictObject({
    /** The file that was written into. */
    base: v.string(),
    /** Bytes written as data, and bytes of zeros. */
    written: Bytes,
    zeros: Bytes,
    emptied: v.boolean(),
    ...planned,
  }),
  errors: writeErrors,
  job: true,
});
export type ImageCommitParams = ParamsOf<typeof imageCommit>;
export type ImageCommitResult = ResultOf<typeof imageCommit>;
