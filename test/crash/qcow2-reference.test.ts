/** Crash states as the reference sees them: its check finds no corruption, and says what ours says. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { addSnapshot, IMAGE, openCrashed } from './qcow2.js';
import { prefixStates, sampledStates } from './replay.js';
import { record, type Scenario } from './scenario.js';

const K = 1024;

describeInterop('crash states by the reference', () => {
  const folder = tempDir();

  const scenarios: Readonly<Record<string, Scenario>> = {
    'writes, zeroes and discards': {
      size: 128 * K,
      before: (guest) => guest.write(0, 20 * K, 1),
      async act(guest) {
        await guest.write(50 * K + 100, 3 * K, 2);
        await guest.zero(2 * K, 3 * K);
        await guest.discard(8 * K, 4 * K);
        await guest.flush();
        await guest.write(9 * K, 2 * K, 3);
      },
    },
    'compressed clusters under a snapshot': {
      size: 128 * K,
      options: { cluster_size: 4096 },
      before: async (guest) => {
        for (let index = 0; index < 4; index++) await guest.pack(index * 4096, index);
      },
      between: (image) => addSnapshot(image, 'one'),
      async act(guest) {
        await guest.write(4096 + 100, 300, 7);
        await guest.pack(40 * K, 8);
        await guest.write(64 * K, 5 * K, 9);
      },
    },
  };
  for (const [name, scenario] of Object.entries(scenarios)) {
    it(name, async () => {
      const { log, start } = await record(scenario);
      const states = [
        ...prefixStates(log, start),
        ...sampledStates(log, start, { seed: 1, samples: 20, torn: true }),
      ];
      for (const state of states) {
        const path = join(folder, 'state.qcow2');
        writeFileSync(path, state.files.get(IMAGE)!.bytes());
        const { status, stderr } = run(reference.qemuImg!, ['check', '-f', 'qcow2', path]);
        const image = await openCrashed(state.files, undefined);
        const { lines } = await image.check!();
        await image.close();
        expect([0, 3]).toContain(status);
        expect(lines).toEqual(stderr.split('\n').filter((line) => line !== ''));
      }
    });
  }
});
