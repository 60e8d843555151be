/** The place of a new image: its name is allowed and can be written, and what has it is used by nobody. Nothing is emptied. */
import { accessSync, constants, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { hostError } from '../../error.js';
import { absolutePath, checkAllowed, confine } from '../../node/gate.js';
import type { Rehearsal } from '../../node/rehearsal.js';
import { type FileStorage, openFile } from '../../storage/file.js';
import { MemoryStorage } from '../../storage/memory.js';
import { permissionsFor } from '../../storage/permissions.js';
import type { Storage } from '../../storage/storage.js';
import type { OperationContext } from '../context.js';
import { creatablePath } from '../create-options.js';
import { type Staged, stage } from '../staged.js';

/** Opens and locks what has the name, as if it were to be overwritten; undefined where a new file may be made. */
async function openPlace(
  shown: string,
  path: string,
  context: OperationContext,
): Promise<FileStorage | undefined> {
  checkAllowed(path, shown, 'caller', context.policy);
  if (statSync(path, { throwIfNoEntry: false }) === undefined) {
    checkFolder(shown, path);
    return undefined;
  }
  return openFile({
    ...{ path, filename: shown, writable: true, create: 'try' },
    locks: permissionsFor({ role: 'create', writable: true }),
    owner: context.owner,
    observer: context.trace,
    confined: confine(shown, 'caller', context.policy),
  });
}

function checkFolder(filename: string, path: string): void {
  try {
    accessSync(dirname(path), constants.W_OK | constants.X_OK);
  } catch (error) {
    throw hostError(`Could not create '${filename}'`, error, { path: filename, operation: 'create' });
  }
}

/** Where a new file takes the place of an old one: that is the folder's to allow. The caller releases it. */
export async function stagedPlace(filename: string, context: OperationContext): Promise<Staged> {
  const staged = await stage(filename, context);
  try {
    checkFolder(filename, staged.path);
    await staged.checkClear();
    return staged;
  } catch (error) {
    await staged.release();
    throw error;
  }
}

export async function checkPlace(
  filename: string,
  atomic: boolean,
  context: OperationContext,
): Promise<void> {
  if (atomic) return (await stagedPlace(filename, context)).release();
  await (await openPlace(filename, absolutePath(creatablePath(filename), context.cwd), context))?.close();
}

/** The file of a new image, empty: what is in the one that has the name stays. */
export async function rehearsedFile(
  shown: string,
  path: string,
  rehearsal: Rehearsal,
  context: OperationContext,
): Promise<Storage> {
  const before = await openPlace(shown, path, context);
  if (before === undefined) return freshFile(shown, path, rehearsal);
  const file = rehearsal.over(before, path);
  await file.truncate(0);
  return file;
}

/** A file that is not there yet, at `path`. */
export function freshFile(shown: string, path: string, rehearsal: Rehearsal): Storage {
  return rehearsal.over(new MemoryStorage(0, { filename: shown }), path, 'file');
}
