/** image-snapshot: the internal snapshots of an image, listed and changed. */
import type { ImageSnapshotParams, ImageSnapshotResult } from '../../protocol/commands/image-snapshot.js';
import { errnoText, ImageError } from '../error.js';
import type { SnapshotInfo } from '../node/driver.js';
import type { ImageNode } from '../node/image.js';
import { openImage } from '../node/open.js';
import type { OperationContext } from './context.js';
import { snapshotInfo } from './info.js';

type Action = Exclude<ImageSnapshotParams['action'], 'list'>;

function notSupported(prefix = ''): ImageError {
  return new ImageError('unsupported', `${prefix}Operation not supported`, { errno: 'ENOTSUP' });
}

/** Creates, applies or deletes one, in the words of errors that the reference has. */
export async function changeSnapshots(image: ImageNode, action: Action, name: string): Promise<void> {
  try {
    await change(image, action, name);
  } catch (error) {
    const failure = error instanceof ImageError && error.message.startsWith('Failed') ? error : reason(error);
    throw failure.prefixed(`Could not ${action} snapshot '${name}': `, { operation: action });
  }
}

async function change(image: ImageNode, action: Action, name: string): Promise<void> {
  const { snapshots } = image.format;
  const edit = snapshots?.edit;
  const list = snapshots?.list() ?? [];
  if (action === 'create') {
    if (edit === undefined) throw notSupported();
    const now = Date.now();
    const dateSec = Math.floor(now / 1000);
    // No machine is running: the instruction count is recorded as zero, as the reference does.
    await edit.create({
      name,
      vmStateSize: 0,
      dateSec,
      dateNsec: (now - dateSec * 1000) * 1_000_000,
      vmClockNsec: 0n,
      icount: 0n,
    });
    return;
  }
  if (action === 'delete') {
    // By its name alone, as the reference does: the first of several.
    const found = list.find((each) => each.name === name);
    if (found === undefined) throw new ImageError('not-found', 'snapshot not found');
    if (edit === undefined) throw notSupported();
    await edit.delete(found);
    return;
  }
  // The ids count first.
  const found = byIdOrName(list, name);
  const held = image.dirtyBitmaps?.list().length ?? 0;
  if (held + ((await image.format.bitmaps?.()) ?? []).length > 0) {
    throw new ImageError('unsupported', 'Device has active dirty bitmaps');
  }
  if (snapshots === undefined) throw new ImageError('unsupported', 'Block driver does not support snapshots');
  if (edit === undefined) throw notSupported('Failed to load snapshot: ');
  if (found === undefined) {
    throw new ImageError('not-found', 'Failed to load snapshot: No such file or directory', {
      errno: 'ENOENT',
    });
  }
  try {
    await edit.apply(found);
  } catch (error) {
    throw reason(error).prefixed('Failed to load snapshot: ');
  }
}

export function snapshotsOf(image: ImageNode): ImageSnapshotResult['snapshots'] {
  return (image.format.snapshots?.list() ?? []).map(snapshotInfo);
}

function byIdOrName(list: readonly SnapshotInfo[], wanted: string): SnapshotInfo | undefined {
  return list.find((each) => each.id === wanted) ?? list.find((each) => each.name === wanted);
}

/** A failure in the reference's words: where there is an errno, its text alone. */
function reason(error: unknown): ImageError {
  if (!(error instanceof ImageError)) throw error;
  const { errno } = error.context;
  if (errno === undefined || error.kind === 'cancelled') return error;
  return new ImageError(error.kind, errnoText(errno), error.context, error);
}

/**
 * Lists the snapshots, or creates, applies or deletes one. It can be cancelled until the first change is made.
 *
 * @throws ImageError `Could not create snapshot 'x': ...`; `unsupported` where the format has no snapshots.
 */
export async function snapshot(
  params: ImageSnapshotParams,
  context: OperationContext,
): Promise<ImageSnapshotResult> {
  const { action, snapshot: name } = params;
  if ((action === 'list') !== (name === undefined)) {
    throw new ImageError(
      'invalid',
      `'snapshot' is ${name === undefined ? 'required' : 'not for'} '${action}'`,
    );
  }
  if (params['dry-run'] === true) {
    if (action === 'list')
      throw new ImageError('invalid', "'dry-run' is not for 'list', which changes nothing");
    const { snapshotPlan } = await import('./dry-run/change.js');
    return snapshotPlan(params, action, name!, context);
  }
  const reading = action === 'list';
  const image = await openImage(params.image, { writable: !reading }, context);
  let snapshots: ImageSnapshotResult['snapshots'];
  try {
    if (!reading) {
      await context.pace(0);
      context.progress({ phase: action, done: 0, total: image.size });
      await changeSnapshots(image, action, name!);
    }
    snapshots = snapshotsOf(image);
  } catch (error) {
    await image.close().catch(() => {});
    throw error;
  }
  await image.close();
  return { snapshots };
}
