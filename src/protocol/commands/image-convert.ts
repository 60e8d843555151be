import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { Bytes, CacheMode, common, FormatOptions, ImageRef, writeErrors } from './common.js';
import { dryRun, planned } from './dry-run.js';

const Digest = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/i, '64 hexadecimal digits expected'));

export const imageConvert = command({
  name: 'image-convert',
  doc: 'Copies the guest content of one image, or of several one after another, into a new or existing image of any writable format. A dry run checks `sources` (opened, locked, allowed), `format`, `options`, `backing`, `target` (name, kind, lock), `apart` and `space`.',
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
    /**
     * Write under a temporary name in the target's folder and put that in its place when it is whole and on the disk: a file
     * that has the name already stays, locked, until then. For images of one file.
     */
    atomic: v.optional(v.boolean()),
    /** Tell the SHA-256 of the sources' guest bytes, computed as they are copied. */
    sha256: v.optional(v.boolean()),
    /** What it must be: where it is not, the call fails, and a target that it created is removed. */
    'expect-sha256': v.optional(Digest),
    /** The same with BLAKE3 (of 256 bits). */
    blake3: v.optional(v.boolean()),
    'expect-blake3': v.optional(Digest),
    /**
     * Keep a checkpoint every second (without it every ten seconds), and go on from the last one where the same conversion,
     * with the same parameters, was cut off by the end of the daemon. Sources and target are verified first; where something
     * has changed it starts over and says why. Not with `cache` unsafe: data that a checkpoint tells of is on the disk.
     */
    resume: v.optional(v.boolean()),
    /** Look up how much data the sources have before it is copied, and tell progress in bytes of that: zeros take no time. */
    'count-data': v.optional(v.boolean()),
    ...dryRun,
  }),
  result: v.strictObject({
    /** Guest bytes of the target. */
    size: Bytes,
    /** Bytes read and written as data; the rest was zeros or stayed in the backing file. */
    written: Bytes,
    zeros: Bytes,
    /** Of the guest bytes of all sources, in hex; where it was asked for. */
    sha256: v.optional(v.string()),
    blake3: v.optional(v.string()),
    /** Guest bytes that an earlier run had copied: they are not in `written` and `zeros`. */
    'resumed-from': v.optional(Bytes),
    /** Why it could not be gone on with, and was started over. */
    'started-over': v.optional(v.string()),
    ...planned,
  }),
  errors: writeErrors,
  job: true,
});
export type ImageConvertParams = ParamsOf<typeof imageConvert>;
export type ImageConvertResult = ResultOf<typeof imageConvert>;
