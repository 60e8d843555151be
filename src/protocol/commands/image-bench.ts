import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, common, ImageRef, readErrors } from './common.js';

const Count = v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(2147483647));
const CountOrZero = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(2147483647));

export const imageBench = command({
  name: 'image-bench',
  doc: 'Sends requests of one size to an image, so many at a time, and tells how long they took. With `write` the image is overwritten.',
  params: v.strictObject({
    ...common,
    image: ImageRef,
    /** Requests in all; 75000 where absent. */
    count: v.optional(Count),
    /** Requests at a time; 64 where absent. */
    depth: v.optional(Count),
    /** Bytes of a request; 4096 where absent. */
    'buffer-size': v.optional(Count),
    offset: v.optional(Bytes),
    /** From the start of a request to that of the next; 0 or absent: `buffer-size`. Past the end of the image it goes on from the start. */
    step: v.optional(CountOrZero),
    write: v.optional(v.boolean()),
    /** The byte that is written; 0 where absent. */
    pattern: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(255))),
    /** A flush after so many writes; 0 or absent: none. */
    'flush-interval': v.optional(CountOrZero),
    /** Do not wait for the requests under way before a flush. */
    'no-drain': v.optional(v.boolean()),
    /** How QEMU would talk to the host. `native` needs a cache mode that goes around the page cache. */
    aio: v.optional(v.picklist(['threads', 'native', 'io_uring'])),
  }),
  result: v.strictObject({
    seconds: v.number(),
    requests: v.number(),
    flushes: v.number(),
    bytes: Bytes,
  }),
  errors: [...readErrors, 'io', 'limit'],
  job: true,
});
export type ImageBenchParams = ParamsOf<typeof imageBench>;
export type ImageBenchResult = ResultOf<typeof imageBench>;
