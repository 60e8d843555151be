/** A held image for a dry run: its format once more, over the bytes that its file has, with all changes in memory. */
import { ImageError } from '../../engine/error.js';
import type { FormatNode } from '../../engine/node/driver.js';
import type { ImageNode } from '../../engine/node/image.js';
import type { LayerParts } from '../../engine/node/node-scope.js';
import type { Rehearsal } from '../../engine/node/rehearsal.js';

/** What was written to the held image must be in its file. `release` is called when the view is closed, or was not made. */
export async function rehearsedView(
  { image, rehearse }: LayerParts,
  release: () => Promise<void>,
  rehearsal: Rehearsal,
): Promise<ImageNode> {
  const { format: held, path, backing } = image;
  const view = image.view({
    apart: true,
    close: async () => {
      try {
        if (view.format !== held) await view.format.close();
      } finally {
        await release();
      }
    },
  });
  try {
    if (held.children.size > 0) {
      rehearsal.cannot('the image is held and has several files');
      throw new ImageError('unsupported', 'A held image of several files');
    }
    const format = await rehearse(rehearsal.overHeld(image.file, path));
    view.replace({ format, backing, writable: true });
    // On the disk bitmaps that the held image has in use look as if nobody had written them back.
    if (broken(format) > broken(held)) rehearsal.cannot('the bitmaps of the held image are in use');
    return view;
  } catch (error) {
    await view.close();
    throw error;
  }
}

function broken({ bitmapStore }: FormatNode): number {
  return bitmapStore?.list().filter(({ flags }) => flags.includes('in-use')).length ?? 0;
}
