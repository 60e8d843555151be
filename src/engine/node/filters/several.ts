/** What filters over several children share. */
import type { Storage } from '../../storage/storage.js';
import type { OpenedFile } from '../open-storage.js';

/** Waits for all and throws the first error; what was started is never left running. */
export async function each<T>(
  children: readonly Storage[],
  work: (child: Storage, index: number) => Promise<T>,
): Promise<PromiseSettledResult<T>[]> {
  return Promise.allSettled(children.map(work));
}

/** Throws the first of the errors. */
export function firstError(results: readonly PromiseSettledResult<unknown>[]): void {
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

/** Opens children one after another; where one fails, those before it are closed. */
export async function openAll(
  names: readonly string[],
  open: (name: string) => Promise<OpenedFile>,
): Promise<OpenedFile[]> {
  const opened: OpenedFile[] = [];
  try {
    for (const name of names) opened.push(await open(name));
    return opened;
  } catch (error) {
    await closeAll(opened);
    throw error;
  }
}

export async function closeAll(opened: readonly OpenedFile[]): Promise<void> {
  await Promise.allSettled(opened.map(({ storage }) => storage.close()));
}
