/** A new image under a temporary name in its folder, which takes the place of its final name once it is whole. */
import { chmodSync, chownSync, lstatSync, type Stats, unlinkSync } from 'node:fs';
import { open, rename } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { hostError, ImageError } from '../error.js';
import { absolutePath, checkAllowed, confine } from '../node/gate.js';
import { type FileStorage, openFile } from '../storage/file.js';
import { permissionsFor } from '../storage/permissions.js';
import type { Storage } from '../storage/storage.js';
import type { OperationContext } from './context.js';
import { creatablePath } from './create-options.js';

export interface Staged {
  /** Absolute path of the temporary file: always the same for a target, so that a crash leaves one at most. */
  readonly path: string;
  /** Makes room for the temporary file, which is to be created anew: what an earlier attempt has left goes, if nobody uses it. */
  clear(): Promise<void>;
  /** What `clear` would refuse, with nothing removed. */
  checkClear(): Promise<void>;
  /** Everything is written and closed: from here to the end no other job gets at the temporary file. */
  keep(): Promise<void>;
  /** On the disk with it, then into its place, and that on the disk too. */
  commit(): Promise<void>;
  /** The temporary file goes; what has the final name stays as it is. */
  discard(): Promise<void>;
  /** Lets go of the file that has the final name, and leaves the temporary one. */
  release(): Promise<void>;
  /** The same error, where it names the temporary file, with the final name. */
  renamed(error: unknown): unknown;
}

/**
 * @throws ImageError where something has the name that cannot be replaced (a device, a symbolic link), or that is in use: it
 *   stays locked until the end, as if it were written.
 */
export async function stage(filename: string, context: OperationContext): Promise<Staged> {
  const final = absolutePath(creatablePath(filename), context.cwd);
  checkAllowed(final, filename, 'caller', context.policy);
  const path = join(dirname(final), `.${basename(final)}.imgd-part`);
  const before = lookAt(final, filename);
  let held: Storage | undefined;
  let temporary: Storage | undefined;
  const lockFile = (at: string): Promise<FileStorage> =>
    openFile({
      ...{ path: at, filename, writable: true, create: 'no', noFollow: true },
      locks: permissionsFor({ role: 'create', writable: true }),
      owner: context.owner,
      observer: context.trace,
      confined: confine(filename, 'caller', context.policy),
    });
  const hold = async (found: Stats): Promise<void> => {
    if (!found.isFile()) {
      throw new ImageError(
        'unsupported',
        `'${filename}' is no regular file: a new one cannot take its place`,
        {
          path: filename,
        },
      );
    }
    held = await lockFile(final);
  };
  const left = lookAt(path, filename);
  if (left?.isFile() === false) {
    // A link, say: it would be followed, and then moved into the place.
    throw new ImageError(
      'unsupported',
      `'${path}', the temporary file for '${filename}', is no regular file`,
      {
        path: filename,
      },
    );
  }
  if (before !== undefined) await hold(before);
  const release = async (): Promise<void> => {
    const files = [held, temporary];
    held = undefined;
    temporary = undefined;
    for (const file of files) await file?.close();
  };
  return {
    path,
    release,
    async clear() {
      const found = lookAt(path, filename);
      if (found === undefined) return;
      const before = await lockFile(path);
      try {
        unlinkSync(path);
      } catch (error) {
        throw hostError(`Could not create '${filename}'`, error, { path: filename });
      } finally {
        await before.close();
      }
    },
    async checkClear() {
      if (lookAt(path, filename) !== undefined) await (await lockFile(path)).close();
    },
    async keep() {
      temporary = await lockFile(path);
    },
    async commit() {
      try {
        // What came to have the name meanwhile is replaced as one that had it before: where nobody uses it.
        const now = lookAt(final, filename);
        if (now !== undefined && (now.ino !== before?.ino || now.dev !== before.dev)) {
          await held?.close();
          held = undefined;
          await hold(now);
        }
        const replaced = now ?? before;
        if (replaced !== undefined) keepAccess(path, replaced);
        await synced(path);
        await rename(path, final);
        await synced(dirname(final));
      } catch (error) {
        throw hostError(`Could not put '${filename}' in its place`, error, { path: filename });
      }
      await release();
    },
    async discard() {
      try {
        temporary ??= await lockFile(path);
      } catch (error) {
        // Another job writes it by now.
        if (error instanceof ImageError && error.kind === 'locked') return release();
      }
      try {
        unlinkSync(path);
      } catch {
        // it was never made
      }
      await release();
    },
    renamed(error) {
      if (!(error instanceof ImageError) || !error.message.includes(path)) return error;
      const message = error.message.replaceAll(path, filename);
      return new ImageError(error.kind, message, { ...error.context, path: filename }, error);
    },
  };
}

function lookAt(path: string, filename: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false });
  } catch (error) {
    throw hostError(`Could not create '${filename}'`, error, { path: filename });
  }
}

/** Who may use the old file may use the new one. */
function keepAccess(path: string, before: Stats): void {
  try {
    chownSync(path, before.uid, before.gid);
  } catch {
    // Not the owner's to give away: then it is the daemon's.
  }
  chmodSync(path, before.mode & 0o7777);
}

async function synced(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
