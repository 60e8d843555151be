/** The backing file of an image to be: what it must not be, and what size it gives. */
import type { ImageCreateParams } from '../../protocol/commands/image-create.js';
import { ImageError } from '../error.js';
import { absolutePath } from '../node/gate.js';
import type { ImageNode } from '../node/image.js';
import { backingPath, openImage } from '../node/open.js';
import { identity } from '../node/open-storage.js';
import { FileStorage } from '../storage/file-storage.js';
import type { OperationContext } from './context.js';
import { type CreateOptions, creatablePath } from './create-options.js';

/** True where the file at `path` (absolute), by whatever name, is one of those that the image and its chain are made of. */
export function consistsOf(image: ImageNode, path: string): boolean {
  const id = identity(path);
  if (id === undefined) return false;
  for (let layer: ImageNode | undefined = image; layer !== undefined; layer = layer.backing) {
    if (layer.path !== undefined && identity(layer.path) === id) return true;
    for (const child of layer.format.children.values()) {
      if (child instanceof FileStorage && `${child.identity.device}:${child.identity.inode}` === id)
        return true;
    }
  }
  return false;
}

/** The new image would take the place of its own backing file, or of one below that. */
const SAME_NAME = 'Error: Trying to create an image with the same filename as the backing file';

/**
 * Opens the backing file of an image to be, to learn its size.
 *
 * @throws ImageError where it cannot be opened, or its format was not named.
 */
async function backingSize(
  filename: string,
  options: CreateOptions,
  context: OperationContext,
): Promise<number> {
  const format = options.given.backing_fmt as string | undefined;
  const full = backingPath(filename, options.given.backing_file as string);
  const ref = {
    filename: full,
    ...(format === undefined ? {} : { format }),
    // Only looked at: a backing file that a guest uses is no obstacle.
    'force-share': true,
  };
  const image = await openImage(ref, { metadataOnly: true }, context).catch((error: unknown) => {
    throw error instanceof ImageError ? withoutName(error, full) : error;
  });
  try {
    if (consistsOf(image, absolutePath(creatablePath(filename), context.cwd))) {
      throw new ImageError('invalid', SAME_NAME);
    }
    if (format !== undefined) return image.size;
    throw new ImageError('invalid', 'Backing file specified without backing format', {
      hint: `Detected format of ${image.driver.name}.`,
    });
  } finally {
    await image.close();
  }
}

/** An error of openImage as the reference words it here: without the first `Could not open 'x': `, and with a hint. */
function withoutName(error: ImageError, name: string): ImageError {
  const prefix = `Could not open '${name}': `;
  const text = error.message.startsWith(prefix) ? error.message.slice(prefix.length) : error.message;
  const hint = [error.context.hint, 'Could not open backing image.']
    .filter((line) => line !== undefined)
    .join('\n');
  return new ImageError(error.kind, text, { ...error.context, hint }, error);
}

/** Looks at the backing file where there is one, and sees to it that the image has a size. */
export async function settleSize(
  params: ImageCreateParams,
  options: CreateOptions,
  context: OperationContext,
): Promise<void> {
  const { filename } = params;
  const { given } = options;
  const backing = given.backing_file as string | undefined;
  if (backing !== undefined) {
    if (backing === '') throw new ImageError('invalid', 'Expected backing file name, got empty string');
    if (backing === filename) throw new ImageError('invalid', SAME_NAME);
    if (params['no-backing-check'] !== true) {
      const size = await backingSize(filename, options, context);
      given.size ??= size;
    } else if (given.backing_fmt === undefined) {
      throw new ImageError('invalid', 'Backing file specified without backing format');
    }
  }
  if (given.size === undefined) {
    throw new ImageError('invalid', 'Image creation needs a size parameter');
  }
}
