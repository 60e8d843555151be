/** Creating qcow2 images: once that is reported as done the image is there whatever happens; before, none or a sound one. */
import { describe, expect, it } from 'vitest';
import type { OptionValues } from '../../src/engine/node/option-table.js';
import { GuestHistory, sampleCount, verifyCrashes } from './invariants.js';
import { PagedStorage } from './paged.js';
import { createOn, DATA, IMAGE, openCrashed } from './qcow2.js';
import { CrashLog, RecordingStorage } from './recorder.js';

const SIZE = 256 * 1024;

async function creationSurvives(
  options: OptionValues,
  old: Uint8Array = new Uint8Array(0),
  backing?: Uint8Array,
): Promise<void> {
  const log = new CrashLog();
  const start = new Map([[IMAGE, new PagedStorage(IMAGE, old)]]);
  const withData = options.data_file !== undefined;
  if (withData) start.set(DATA, new PagedStorage(DATA));
  const [image, data] = [...start].map(([name, storage]) => new RecordingStorage(storage.fork(), log, name));
  // whoever opens the file for creation has emptied it
  if (old.length > 0) await image!.truncate(0);
  const below = backing === undefined ? undefined : new PagedStorage('backing', backing);
  await createOn({ image: image!, data, backing: below }, SIZE, { cluster_size: 4096, ...options });
  const created = log.mark('created');
  const guest = new Uint8Array(SIZE);
  guest.set(backing ?? []);
  const { violations } = await verifyCrashes(
    log,
    start,
    {
      open: (state) => openCrashed(state.files, below),
      history: new GuestHistory(log, guest),
      mustOpen: (state) => state.time >= created,
    },
    { seed: 1, samples: sampleCount(150), torn: true },
  );
  expect(violations).toEqual([]);
}

describe('creation of qcow2 images survives crashes', () => {
  const all: readonly OptionValues[] = [
    {},
    { compat: '0.10' },
    { refcount_bits: 1 },
    { refcount_bits: 64, cluster_size: 512 },
    { lazy_refcounts: true },
    { cluster_size: 16384, extended_l2: true },
    { preallocation: 'metadata' },
    { preallocation: 'metadata', cluster_size: 512 },
    { preallocation: 'falloc' },
    { preallocation: 'full' },
    { data_file: 'data' },
    { data_file: 'data', data_file_raw: true },
    { data_file: 'data', preallocation: 'metadata' },
  ];
  for (const options of all) {
    it(JSON.stringify(options), () => creationSurvives(options));
  }

  it('over a file that had something else in it', () =>
    creationSurvives({}, new Uint8Array(20_000).fill(0x51)));

  it('over a backing file', () =>
    creationSurvives(
      {},
      undefined,
      new Uint8Array(100_000).map((_, at) => (at >>> 9) + 1),
    ));
});
