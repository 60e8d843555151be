/** image-measure: how large the file of a new image will be. */
import type { ImageMeasureParams, ImageMeasureResult } from '../../protocol/commands/image-measure.js';
import { ImageError } from '../error.js';
import type { FormatDriver, MeasureSource } from '../node/driver.js';
import type { ImageNode } from '../node/image.js';
import { openImage } from '../node/open.js';
import type { Storage } from '../storage/storage.js';
import type { OperationContext } from './context.js';
import { snapshotView } from './convert.js';
import { creatableDriver, parseCreateOptions } from './create-options.js';
import { mayHaveHoles } from './map.js';

/** Between looks at pause and cancel. */
const RUNS_PER_TURN = 256;
/** Guest bytes, in whole units, that hold data somewhere in the chain. Nothing is read but metadata. */
async function dataBytes(image: ImageNode, unit: number, context: OperationContext): Promise<bigint> {
  const { size } = image;
  const sparse = new Map<Storage, boolean>();
  let bytes = 0;
  let runs = 0;
  for (let at = 0; at < size; ) {
    if (++runs % RUNS_PER_TURN === 0) {
      context.progress({ phase: 'measure', done: at, total: size });
      const waits = context.pace(0);
      if (waits !== undefined) await waits;
    }
    const answer = image.status({ at, length: size - at });
    const { kind, length, extent, layer } = answer instanceof Promise ? await answer : answer;
    let end = at + length;
    let isData = kind === 'data' || kind === 'packed' || layer.format.opaque === true;
    if (extent?.kind === 'data' && layer.format.dataHoles === undefined) {
      const { storage } = extent;
      let holes = sparse.get(storage);
      if (holes === undefined) {
        holes = await mayHaveHoles(layer, storage);
        sparse.set(storage, holes);
      }
      if (holes) {
        const run = await storage.extent({ at: extent.at, length });
        isData = run.data;
        end = at + run.length;
      }
    }
    if (isData) {
      // The rest of the unit is counted with it, and not looked at any more.
      const stop = Math.ceil(end / unit) * unit;
      bytes += stop - (at - (at % unit));
      end = stop;
    }
    at = end;
  }
  return BigInt(bytes);
}

/** `view` is the image itself or a snapshot of it, which has the image's bitmaps. */
async function sourceOf(
  view: ImageNode,
  { format }: ImageNode,
  context: OperationContext,
): Promise<MeasureSource> {
  const bitmaps = format.storesBitmaps === true ? await format.bitmaps?.() : undefined;
  return {
    dataBytes: (unit) => dataBytes(view, unit, context),
    ...(bitmaps === undefined ? {} : { bitmaps }),
  };
}

/** The target's options typed; errors name the format, as the reference's do. */
function typed(
  driver: FormatDriver,
  params: ImageMeasureParams,
): Readonly<Record<string, string | number | boolean>> {
  try {
    return parseCreateOptions(driver, params.options ?? {}).given;
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    const more = `qemu-img: Invalid options for file format '${driver.name}'`;
    const { hint } = error.context;
    throw new ImageError(
      error.kind,
      error.message,
      { ...error.context, hint: hint === undefined ? more : `${hint}\n${more}` },
      error,
    );
  }
}

/** A count as the wire has it: digits where a number would not be exact. */
function wire(value: bigint): number | string {
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : String(value);
}

/**
 * Measures an image to be, of a size or with another image's content.
 *
 * @throws ImageError `unsupported` where the format cannot tell.
 */
export async function measure(
  params: ImageMeasureParams,
  context: OperationContext,
): Promise<ImageMeasureResult> {
  const { image: ref, size } = params;
  if ((ref === undefined) === (size === undefined)) {
    throw new ImageError('invalid', 'Either --size N or one filename must be specified.');
  }
  const opened = ref === undefined ? undefined : await openImage(ref, {}, context);
  try {
    let image = opened;
    if (opened !== undefined && params.snapshot !== undefined) {
      image = await snapshotView(opened, params.snapshot);
    }
    const driver = await creatableDriver(params.format ?? 'raw');
    const options = typed(driver, params);
    if (driver.measure === undefined) {
      throw new ImageError('unsupported', `Block driver '${driver.name}' does not support size measurement`);
    }
    const { required, fullyAllocated, bitmaps } = await driver.measure({
      options,
      size: image === undefined ? BigInt(size!) : BigInt(image.size),
      ...(image === undefined ? {} : { source: await sourceOf(image, opened!, context) }),
    });
    return {
      required: wire(required),
      'fully-allocated': wire(fullyAllocated),
      ...(bitmaps === undefined ? {} : { bitmaps: Number(bitmaps) }),
    };
  } finally {
    await opened?.close();
  }
}
