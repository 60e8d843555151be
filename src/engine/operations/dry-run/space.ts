/** What an operation may need of the host's space, against what is free. */
import { lstatSync } from 'node:fs';
import { stat, statfs } from 'node:fs/promises';
import { dirname } from 'node:path';
import { ImageError } from '../../error.js';
import { absolutePath, checkAllowed } from '../../node/gate.js';
import type { Rehearsal } from '../../node/rehearsal.js';
import type { OperationContext } from '../context.js';
import { creatablePath } from '../create-options.js';

/** Thrown where a check cannot be made. */
export class Skipped extends Error {}

/** In bytes; undefined where it cannot be told. */
export interface Space {
  readonly required?: number | undefined;
  readonly 'fully-allocated'?: number | undefined;
  readonly free?: number | undefined;
  /** Of the file that would be overwritten. */
  readonly reclaimed?: number;
  /** Why it is not to be looked at. */
  readonly skipped?: string;
}

/** In the file system that the file is in, or would be. */
async function freeAt(path: string): Promise<number | undefined> {
  try {
    const { bavail, bsize } = await statfs(path).catch(() => statfs(dirname(path)));
    return bavail * bsize;
  } catch {
    return undefined;
  }
}

/** Of all that was written in the rehearsal; where files lie in several file systems, the free space of the one with the least. */
export async function spaceOf({ storages }: Rehearsal): Promise<Space> {
  const systems = new Map<number, { required: number; free: number }>();
  let required = 0;
  for (const { storage, path } of storages) {
    const needed = await storage.needed();
    required += needed;
    if (path === undefined || needed === 0) continue;
    const device = await deviceOf(path);
    const free = await freeAt(path);
    if (device === undefined || free === undefined) return { required };
    const system = systems.get(device);
    if (system === undefined) systems.set(device, { required: needed, free });
    else system.required += needed;
  }
  let least: { required: number; free: number } | undefined;
  for (const system of systems.values()) {
    if (least === undefined || system.free - system.required < least.free - least.required) least = system;
  }
  if (least !== undefined) return systems.size > 1 ? least : { required, free: least.free };
  const first = storages.find(({ path }) => path !== undefined)?.path;
  return { required, free: first === undefined ? undefined : await freeAt(first) };
}

async function deviceOf(path: string): Promise<number | undefined> {
  const found = await stat(path).catch(() => stat(dirname(path)).catch(() => undefined));
  return found?.dev;
}

/** For a new file of that name; what it overwrites goes first. */
export async function spaceAt(
  filename: string,
  atomic: boolean,
  context: OperationContext,
): Promise<Pick<Space, 'free' | 'reclaimed'>> {
  try {
    const path = absolutePath(creatablePath(filename), context.cwd);
    checkAllowed(path, filename, 'caller', context.policy);
    const before = lstatSync(path, { throwIfNoEntry: false });
    const reclaimed = before?.isFile() === true && !atomic ? before.blocks * 512 : 0;
    return { free: await freeAt(path), reclaimed };
  } catch {
    return {};
  }
}

export function checkSpace({ required, free, reclaimed = 0, skipped }: Space): void {
  if (skipped !== undefined) throw new Skipped(skipped);
  if (required === undefined) throw new Skipped('the format of the target does not tell what it needs');
  if (required === 0) return;
  if (free === undefined) throw new Skipped('the file system does not tell what is free');
  if (required > free + reclaimed) {
    const text = `${required} bytes are needed at most, ${free + reclaimed} are free`;
    throw new ImageError('no-space', text, { errno: 'ENOSPC', check: 'space' });
  }
}
