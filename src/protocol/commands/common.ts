/** Schemas that several commands share. Names are QAPI's where QAPI has the thing. */
import * as v from 'valibot';

export const CacheMode = v.picklist(['none', 'writeback', 'unsafe', 'writethrough', 'directsync']);
export type CacheMode = v.InferOutput<typeof CacheMode>;

export const Bytes = v.pipe(v.number(), v.safeInteger(), v.minValue(0));

/** What an image may be created with: up to 2^63, as far as a number holds it exactly (and no further are there round ones). */
export const LargeBytes = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(2 ** 63 - 1024));

/**
 * An image that exists. Either `filename` (a path, relative to the request's `cwd`; `json:{...}`; `proto:...`), with an
 * optional `format`, or `image-opts`, QEMU's `driver=qcow2,file.filename=...` string.
 */
export const ImageRef = v.strictObject({
  filename: v.optional(v.string()),
  'image-opts': v.optional(v.string()),
  /** In place of both: an image that the daemon holds, by its node name (blockdev-add). */
  node: v.optional(v.string()),
  /** Not probed when given. */
  format: v.optional(v.string()),
  /** Open read-only although another process writes it. */
  'force-share': v.optional(v.boolean()),
  cache: v.optional(CacheMode),
});
export type ImageRef = v.InferOutput<typeof ImageRef>;

/** Values for `-o`: as numbers and booleans, or as the text that a command line would have. */
export const FormatOptions = v.record(v.string(), v.union([v.string(), v.number(), v.boolean()]));
export type FormatOptions = v.InferOutput<typeof FormatOptions>;

/** `--object TYPE,id=ID,...`: parsed, held for what refers to the id. */
export const UserObject = v.looseObject({ 'qom-type': v.string(), id: v.string() });
export type UserObject = v.InferOutput<typeof UserObject>;

/** More and longer ones than there are events make no sense. */
const TracePatterns = v.pipe(v.array(v.pipe(v.string(), v.maxLength(256))), v.maxLength(256));

/** Members that every image command takes. */
export const common = {
  /** Absolute path that relative filenames are resolved against; the daemon's own where absent. */
  cwd: v.optional(v.string()),
  objects: v.optional(v.array(UserObject)),
  /** Trace events that the job tells of, as JOB_OUTPUT with the stream `trace`: names and patterns (query-trace-events) in order; a `-` in front takes back. */
  trace: v.optional(TracePatterns),
};

/** How operations on an image fail that read it, and those that write it, too. */
export const readErrors = [
  'not-found',
  'access',
  'locked',
  'corrupt',
  'unsupported',
  'denied',
  'invalid',
] as const;
export const writeErrors = [...readErrors, 'no-space', 'io', 'cancelled'] as const;
