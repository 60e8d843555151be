/** Writes of guest bytes that are not there: the format finds places for them and links these, as for real ones. */
import { setImmediate } from 'node:timers/promises';
import { ImageError } from '../../error.js';
import type { ImageNode } from '../../node/image.js';
import { ScratchStorage } from '../../storage/scratch.js';
import type { Range } from '../../storage/storage.js';
import type { OperationContext } from '../context.js';

/** The image is one whose changes stay in memory. What the range reads as after says nothing. */
export async function pretendWrite({ format, filename }: ImageNode, { at, length }: Range): Promise<void> {
  for (let done = 0; done < length; ) {
    const target = await format.prepareWrite?.({ at: at + done, length: length - done });
    if (target === undefined) throw new ImageError('unsupported', `'${filename}' cannot be written`);
    const { storage, fillBefore, fillAfter } = target;
    const whole = { at: target.at - fillBefore, length: fillBefore + target.length + fillAfter };
    if (storage instanceof ScratchStorage) storage.pretendWrite(whole);
    else await storage.zero(whole);
    await target.commit?.();
    done += target.length;
  }
}

const PER_TURN = 256;

/** To be asked before each step: every now and then the others get their turn, and pause and cancel are looked at. */
export function turns(context: OperationContext): () => Promise<void> {
  let steps = 0;
  return async () => {
    if (++steps % PER_TURN !== 0) return;
    await context.pace(0);
    await setImmediate();
  };
}
