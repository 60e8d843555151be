/** image-amend: options of an existing image, changed in place. */
import type {
  AmendOptionsParams,
  AmendOptionsResult,
  ImageAmendParams,
  ImageAmendResult,
} from '../../protocol/commands/image-amend.js';
import { ImageError } from '../error.js';
import { loadDriver } from '../formats/index.js';
import type { FormatDriver } from '../node/driver.js';
import { typeOf } from '../node/flat-options.js';
import type { ImageNode } from '../node/image.js';
import { openImage } from '../node/open.js';
import type { OptionDeclaration, OptionValue } from '../node/option-table.js';
import type { OperationContext } from './context.js';
import { resizeNode } from './resize.js';

function tableOf(driver: FormatDriver | undefined, name: string): readonly OptionDeclaration[] {
  if (driver?.amendOptions === undefined) {
    throw unsupported(name);
  }
  return driver.amendOptions;
}

/** The options as the image's format takes them. */
export function amendments(
  image: ImageNode,
  options: ImageAmendParams['options'],
): Record<string, OptionValue> {
  const wanted = typed(image.driver, options);
  if (image.format.amender === undefined) throw unsupported(image.driver.name);
  return wanted;
}

function unsupported(format: string): ImageError {
  return new ImageError('unsupported', `Format driver '${format}' does not support option amendment`);
}

/** The options typed; those of creation that cannot be amended are told apart from those that do not exist. */
function typed(driver: FormatDriver, options: ImageAmendParams['options']): Record<string, OptionValue> {
  const table = tableOf(driver, driver.name);
  const out: Record<string, OptionValue> = {};
  for (const [name, value] of Object.entries(options)) {
    const declaration = table.find((option) => option.name === name);
    if (declaration === undefined) {
      const hint = fitsCreation(driver, options)
        ? { hint: 'This option is only supported for image creation' }
        : {};
      throw new ImageError('invalid', `Invalid parameter '${name}'`, hint);
    }
    out[name] = typeOf(declaration, value);
  }
  return out;
}

/** Whether creating an image would have taken all these options, with these values. */
function fitsCreation(driver: FormatDriver, options: ImageAmendParams['options']): boolean {
  const table = [...tableOf(driver, driver.name), ...driver.createOptions];
  try {
    for (const [name, value] of Object.entries(options)) {
      const declaration = table.find((option) => option.name === name);
      if (declaration === undefined) return false;
      typeOf(declaration, value);
    }
    return true;
  } catch {
    return false;
  }
}

/** The work of amending an open image, durable when it resolves. */
export async function amendNode(
  image: ImageNode,
  options: Readonly<Record<string, OptionValue>>,
  context: OperationContext,
): Promise<void> {
  context.progress({ phase: 'amend', done: 0, total: 1 });
  await image.format.amender!.amend(options, {
    signal: context.signal,
    pace: () => context.pace(0),
    resize: (size) => resizeNode(image, size),
    progress: (done, total) => context.progress({ phase: 'amend', done, total }),
  });
  await image.flush();
}

/** Changes what is asked for. What was changed before an error stays. */
export async function amend(params: ImageAmendParams, context: OperationContext): Promise<ImageAmendResult> {
  if (params['dry-run'] === true) {
    const { amendPlan } = await import('./dry-run/change.js');
    return amendPlan(params, context);
  }
  const image = await openImage(params.image, { writable: true, resize: true }, context);
  try {
    await amendNode(image, amendments(image, params.options), context);
  } catch (error) {
    await image.close().catch(() => {});
    throw error;
  }
  await image.close();
  return {};
}

/** By name. */
export async function amendOptions(
  params: AmendOptionsParams,
  context: OperationContext,
): Promise<AmendOptionsResult> {
  let { format } = params;
  if (format === undefined) {
    if (params.image === undefined) throw new ImageError('invalid', 'a format or an image is needed');
    const image = await openImage(params.image, { metadataOnly: true }, context);
    format = image.driver.name;
    await image.close();
  }
  const driver = await loadDriver(format);
  if (driver === undefined && !['file', 'host_device', 'null-co', 'null-aio'].includes(format)) {
    throw new ImageError('invalid', `Unknown file format '${format}'`);
  }
  const options = tableOf(driver, format).map(({ name, type, help }) => ({ name, type, help }));
  return { format, options: options.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0)) };
}
