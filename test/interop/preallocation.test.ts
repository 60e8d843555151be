/** What a resize with preallocation takes on the host, in the image and in its data file. */
import { rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { qemuImg } from '../support/client.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';

const folder = tempDir();
const [image, data] = [join(folder, 'x.qcow2'), join(folder, 'x.data')];
/** File systems give a few blocks more or less, and ours writes no zeros where a hole will do. */
const SLACK_BLOCKS = 128;

describeInterop('preallocation of what is added', () => {
  for (const raw of ['on', 'off']) {
    for (const mode of ['off', 'metadata', 'falloc', 'full']) {
      it(`${mode}, data_file_raw=${raw}`, () => {
        const files = (resize: (args: string[]) => { status: number | null }) => {
          rmSync(data, { force: true });
          const options = `data_file=${data},data_file_raw=${raw}`;
          run(reference.qemuImg!, ['create', '-q', '-f', 'qcow2', '-o', options, image, '1M']);
          const { status } = resize(['resize', '-q', `--preallocation=${mode}`, image, '+16M']);
          expect(status).toBe(0);
          const { size, blocks } = statSync(data);
          return { size, blocks };
        };
        const theirs = files((args) => run(reference.qemuImg!, args));
        const ours = files((args) => qemuImg(args));
        expect(ours.size).toBe(theirs.size);
        expect(Math.abs(ours.blocks - theirs.blocks)).toBeLessThan(SLACK_BLOCKS);
        expect(run(reference.qemuImg!, ['check', '-q', image]).status).toBe(0);
      });
    }
  }
});
