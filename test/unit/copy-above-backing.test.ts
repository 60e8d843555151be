/** `-B`: what a source does not have above its backing file, and what lies where it has none. */
import { expect, it } from 'vitest';
import type { ImageNode } from '../../src/engine/node/image.js';
import { imageSource } from '../../src/engine/operations/copy.js';

const MiB = 2 ** 20;

/** An image of 4 MiB that has nothing of its own. */
function empty(backing: number | undefined): ImageNode {
  return {
    size: 4 * MiB,
    backing: backing === undefined ? undefined : { size: backing },
    format: { map: ({ length }: { length: number }) => ({ kind: 'backing', length }) },
  } as unknown as ImageNode;
}

async function runs(image: ImageNode, targetBacked: number): Promise<string[]> {
  const source = imageSource(image, true, targetBacked);
  const found: string[] = [];
  for (let at = 0; at < source.size; ) {
    const { kind, length } = await source.run({ at, length: source.size - at });
    found.push(`${kind} ${length / MiB}`);
    at += length;
  }
  return found;
}

it("a source without a backing file reads as zeros, which hide what the target's has", async () => {
  expect(await runs(empty(undefined), 4 * MiB)).toEqual(['zero 4']);
});

it('so does what lies past the end of a shorter backing file', async () => {
  expect(await runs(empty(MiB), 3 * MiB)).toEqual(['skip 1', 'zero 2', 'skip 1']);
});

it('what both backing files have stays there', async () => {
  expect(await runs(empty(4 * MiB), 4 * MiB)).toEqual(['skip 4']);
});
