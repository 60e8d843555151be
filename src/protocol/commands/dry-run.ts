/** What operations that write tell of themselves before a byte moves. */
import * as v from 'valibot';
import { Bytes } from './common.js';

/** What a dry run found. */
export const DryRunPlan = v.strictObject({
  /** No check has failed: as far as can be known the operation would go through, and have the space that it needs. */
  ok: v.boolean(),
  /** In the order in which the operation itself would come to them. */
  checks: v.array(
    v.strictObject({
      /** What is looked at: each operation says which checks there are. */
      name: v.string(),
      /** `skipped`: cannot be told, or not before another check is well. */
      status: v.picklist(['ok', 'failed', 'skipped']),
      /** The error's kind, where failed: that with which the operation would fail. */
      kind: v.optional(v.string()),
      /** Why it failed or was skipped. */
      text: v.optional(v.string()),
    }),
  ),
  /**
   * Bytes of the host's space that are needed at most, where that can be told: of `image-convert`, what the target's file will have
   * without compression.
   */
  required: v.optional(Bytes),
  /** The same when all is allocated, where a new image is filled. */
  'fully-allocated': v.optional(Bytes),
  /** Bytes that the daemon's user may still write in the file system; in the one that has least, where there are several. */
  free: v.optional(Bytes),
});
export type DryRunPlan = v.InferOutput<typeof DryRunPlan>;
export type DryRunCheck = DryRunPlan['checks'][number];

/** Of the params. */
export const dryRun = {
  /** Look at everything that can be known before a byte moves, and tell it in `plan`: nothing is made or changed. */
  'dry-run': v.optional(v.boolean()),
};

/** Of the result. */
export const planned = {
  /** Of a dry run. What else the result tells is what would be, as far as that was found. */
  plan: v.optional(DryRunPlan),
};
