import * as v from 'valibot';
import { command, type ParamsOf, type ResultOf } from '../command.js';
import { common, ImageRef, writeErrors } from './common.js';
import { dryRun, planned } from './dry-run.js';

/** QAPI's SnapshotInfo. */
export const SnapshotInfo = v.strictObject({
  id: v.string(),
  name: v.string(),
  'vm-state-size': v.number(),
  'date-sec': v.number(),
  'date-nsec': v.number(),
  'vm-clock-sec': v.number(),
  'vm-clock-nsec': v.number(),
  /** Absent where none was recorded. */
  icount: v.optional(v.number()),
});
export type SnapshotInfo = v.InferOutput<typeof SnapshotInfo>;

export const imageSnapshot = command({
  name: 'image-snapshot',
  doc: 'Lists the internal snapshots of an image, keeps its present content as a new one, makes its content that of one, or deletes one. The result is the list after. A dry run checks `image` (opened, locked, allowed), the action by its name, and `space`.',
  params: v.strictObject({
    ...common,
    image: ImageRef,
    action: v.picklist(['list', 'create', 'apply', 'delete']),
    /** The name of the new snapshot or of the one to be deleted, the id or name of the one to be applied; not with `list`. */
    snapshot: v.optional(v.string()),
    ...dryRun,
  }),
  result: v.strictObject({ snapshots: v.array(SnapshotInfo), ...planned }),
  errors: [...writeErrors, 'limit'],
  job: true,
});
export type ImageSnapshotParams = ParamsOf<typeof imageSnapshot>;
export type ImageSnapshotResult = ResultOf<typeof imageSnapshot>;
