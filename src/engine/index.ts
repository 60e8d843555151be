/** The engine's façade: operations by name. What an operation throws becomes a Result here, and only here. */
import { ResultAsync } from 'neverthrow';
import type { UserObject } from '../protocol/commands/common.js';
import type { OperationName } from '../protocol/commands/index.js';
import { type ImageError, toImageError } from './error.js';
import type { OperationContext } from './operations/context.js';

type Operation = (params: never, context: OperationContext) => Promise<unknown>;

/** Each operation's code is loaded when it is first run: the command line pays for one. */
const operations: Readonly<Record<OperationName, () => Promise<Operation>>> = {
  'image-create': async () => (await import('./operations/create.js')).create,
  'image-info': async () => (await import('./operations/info.js')).info,
  'image-inspect': async () => (await import('./operations/inspect.js')).inspect,
  'image-convert': async () => (await import('./operations/convert.js')).convert,
  'image-check': async () => (await import('./operations/check.js')).check,
  'image-map': async () => (await import('./operations/map.js')).map,
  'image-compare': async () => (await import('./operations/compare.js')).compare,
  'image-commit': async () => (await import('./operations/commit.js')).commit,
  'image-rebase': async () => (await import('./operations/rebase.js')).rebase,
  'image-measure': async () => (await import('./operations/measure.js')).measure,
  'image-dd': async () => (await import('./operations/dd.js')).dd,
  'image-bench': async () => (await import('./operations/bench.js')).bench,
  'image-amend': async () => (await import('./operations/amend.js')).amend,
  'amend-options': async () => (await import('./operations/amend.js')).amendOptions,
  'image-bitmap': async () => (await import('./operations/bitmap.js')).bitmap,
  'image-resize': async () => (await import('./operations/resize.js')).resize,
  'image-snapshot': async () => (await import('./operations/snapshot.js')).snapshot,
  'format-options': async () => (await import('./operations/format-options.js')).formatOptions,
};

interface Common {
  readonly objects?: readonly UserObject[];
  readonly trace?: readonly string[];
}

/** Runs one operation to its end. `params` were validated against the operation's declaration. */
export function runOperation(
  name: OperationName,
  params: unknown,
  context: OperationContext,
): ResultAsync<unknown, ImageError> {
  const work = async () => {
    const operation = await operations[name]();
    const { objects, trace } = params as Common;
    if (trace !== undefined) context = (await import('./trace.js')).traced(context, trace);
    if (objects === undefined) return operation(params as never, context);
    const { throttleGroups } = await import('./node/throttle-group.js');
    const groups = throttleGroups(objects, context.signal);
    return operation(params as never, { ...context, throttleGroups: groups });
  };
  return ResultAsync.fromPromise(work(), toImageError);
}

/** Loads what looking at a common image needs, so that a worker that waits warm answers at once. */
export async function preload(): Promise<void> {
  const { loadDriver } = await import('./formats/index.js');
  await Promise.all([operations['image-info'](), loadDriver('qcow2'), loadDriver('raw')]);
}

export { ImageError } from './error.js';
export type { OperationContext } from './operations/context.js';
export { createPacer } from './operations/pacer.js';
export { exitNow } from './storage/host/libc.js';
