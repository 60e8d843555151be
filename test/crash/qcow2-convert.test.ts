/** Converting into an image that exists: each sector of the target is the old one or the source's, and once it is reported as done, the source's. */
import { describe, it } from 'vitest';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { type CopySource, copy } from '../../src/engine/operations/copy.js';
import { quietContext } from '../support/operations.js';
import { pattern, survives } from './scenario.js';

const K = 1024;
const SIZE = 384 * K;

const context = quietContext();

/** Data with runs of zeros in it, some told as zeros and some to be found. */
function sourceBytes(): Uint8Array {
  const bytes = pattern(0, SIZE, 50);
  bytes.fill(0, 30 * K, 60 * K);
  bytes.fill(0, 100 * K, 101 * K);
  bytes.fill(0, 200 * K, 300 * K);
  return bytes;
}

function sourceOf(bytes: Uint8Array): CopySource {
  return {
    size: bytes.length,
    run({ at, length }) {
      if (at >= 200 * K && at < 300 * K) return { kind: 'zero', length: Math.min(length, 300 * K - at) };
      const end = at < 200 * K ? 200 * K : SIZE;
      const own = Math.min(length, end - at);
      return {
        kind: 'data',
        length: own,
        read: async (into) => {
          into.set(bytes.subarray(at, at + into.length));
        },
      };
    },
  };
}

async function conversionSurvives(
  options: OptionValues,
  how: { readonly compress?: boolean; readonly outOfOrder?: boolean; readonly targetIsZero?: boolean } = {},
): Promise<void> {
  const bytes = sourceBytes();
  const { compress = false, outOfOrder = false, targetIsZero = false } = how;
  await survives({
    size: SIZE,
    options: { cluster_size: 4096, ...options },
    before: async (guest) => {
      if (targetIsZero) return;
      await guest.write(10 * K, 50 * K, 1);
      await guest.write(150 * K, 100 * K, 2);
    },
    act: (guest) =>
      guest.history.write(0, bytes, () =>
        copy(
          sourceOf(bytes),
          guest.image,
          { parallel: 4, outOfOrder, sparse: 4096, targetIsZero, compress },
          context,
        ),
      ),
    samples: 100,
  });
}

describe('conversion into an existing qcow2 image survives crashes', { timeout: 300_000 }, () => {
  it('over old content', () => conversionSurvives({}));
  it('over old content, small clusters', () => conversionSurvives({ cluster_size: 512 }));
  it('over old content, out of order', () => conversionSurvives({}, { outOfOrder: true }));
  it('compressed, over old content', () => conversionSurvives({}, { compress: true }));
  it('into an empty image', () => conversionSurvives({}, { targetIsZero: true }));
  it('compressed, into an empty image', () => conversionSurvives({}, { compress: true, targetIsZero: true }));
  it('subclusters', () => conversionSurvives({ cluster_size: 16 * K, extended_l2: true }));
  it('an external data file', () => conversionSurvives({ data_file: 'data' }));
});
