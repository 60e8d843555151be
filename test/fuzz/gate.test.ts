/** Names inside images, opened through the node layer under a policy with one folder: nothing outside of it is opened. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve, sep } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { HeaderV2 } from '../../src/engine/formats/qcow2/layout.js';
import { openImage } from '../../src/engine/node/open.js';
import { quietContext } from '../support/operations.js';
import { descriptor } from '../unit/vmdk-images.js';
import { Guards } from './guards.js';
import { fuzzTimeout, numbers } from './harness.js';
import { mutateText } from './mutate.js';
import { qcow2Seeds } from './qcow2-seeds.js';
import { Random } from './random.js';

const base = realpathSync(mkdtempSync(join(tmpdir(), 'imgd-gate-')));
const root = join(base, 'root');
mkdirSync(join(root, 'sub'), { recursive: true });
writeFileSync(join(base, 'secret'), 'secret');
writeFileSync(join(root, 'inside'), new Uint8Array(4096));
symlinkSync(join(base, 'secret'), join(root, 'link'));
symlinkSync(base, join(root, 'up'));
afterAll(() => rmSync(base, { recursive: true, force: true }));

const outside = [
  join(base, 'secret'),
  '../secret',
  'sub/../../secret',
  './/..//secret',
  // folders that do not exist, so that no real path can be had
  '../missing/folder/file',
  'missing/../../folder/file',
  'link',
  'up/secret',
  'sub/../up/secret',
  'file:../secret',
  `file:${base}/secret`,
  `host_device:${base}/secret`,
  `json:{"driver":"raw","file.filename":"${base}/secret"}`,
  `json:{"file":{"driver":"host_device","filename":"${base}/secret"}}`,
  `json:{'driver':'raw','file':{'driver':'file','filename':'up/secret'}}`,
  `json:{"driver":"qcow2","file":{"filename":"inside"},"backing":{"driver":"raw","file":{"filename":"../secret"}}}`,
  '/dev/null',
  '/proc/self/environ',
  '/etc/passwd',
  'nbd://127.0.0.1:1/x',
  'http://127.0.0.1:1/x',
  'fat:/etc',
];

const context = quietContext({ cwd: root, policy: { roots: [root] } });

/** Puts a name where a qcow2 image keeps its backing file's: behind all else in the first cluster. */
function withBacking(image: Uint8Array, name: string): Uint8Array {
  const bytes = Buffer.from(image);
  const text = Buffer.from(name, 'latin1').subarray(0, 1023);
  const at = 2048;
  text.copy(bytes, at);
  bytes.writeBigUInt64BE(BigInt(at), HeaderV2.offsetOf('backingFileOffset'));
  bytes.writeUInt32BE(text.length, HeaderV2.offsetOf('backingFileSize'));
  return bytes;
}

/** Opens the image and reads a little; gives the paths outside of the root that were opened on the way. */
async function tryOpen(
  guards: Guards,
  path: string,
  label: string,
): Promise<{ error: unknown; opened: string[] }> {
  let error: unknown;
  const { files } = await guards.watch(label, new Uint8Array(0), async () => {
    try {
      const image = await openImage({ filename: path }, {}, context);
      try {
        await image.read(0, new Uint8Array(Math.min(512, image.size)));
      } finally {
        await image.close();
      }
    } catch (thrown) {
      error = thrown;
    }
  });
  // Looking where a symlink leads is how the gate judges; opening is not.
  const opened = files
    .filter((call) => /^(open|openSync|readFile|readFileSync) /.test(call))
    .map((call) => call.replace(/^\w+ /, ''))
    .map((name) => (existsSync(name) ? realpathSync(name) : resolve(name)))
    .filter((name) => name !== root && !name.startsWith(`${root}${sep}`) && !name.startsWith('/proc/'));
  return { error, opened };
}

test('names that lead out of the allowed folder', { timeout: fuzzTimeout }, async () => {
  const seeds = await qcow2Seeds();
  const plain = seeds.find((seed) => seed.name === 'version 2')!.files[0]!.bytes;
  const guards = new Guards(join(tmpdir(), 'imgd-fuzz'));
  const failures: string[] = [];
  const attempt = async (name: string, mustFail: boolean) => {
    writeFileSync(join(root, 'image.qcow2'), withBacking(plain, name));
    writeFileSync(
      join(root, 'image.vmdk'),
      descriptor({ type: 'monolithicFlat', lines: [`RW 1 FLAT "${name}" 0`] }),
    );
    for (const file of ['image.qcow2', 'image.vmdk']) {
      const { error, opened } = await tryOpen(guards, join(root, file), `${file} with ${name}`);
      const text = `${file} with ${JSON.stringify(name)}`;
      if (opened.length > 0) failures.push(`${text} opened ${opened.join(', ')}`);
      if (error !== undefined && (!(error instanceof ImageError) || error.kind === 'internal')) {
        failures.push(`${text}: ${error instanceof Error ? error.stack : String(error)}`);
      }
      if (mustFail && error === undefined) failures.push(`${text} was not refused`);
    }
  };
  try {
    for (const name of outside) await attempt(name, true);
    for (const number of numbers(150)) {
      const random = new Random(number);
      let name = random.pick(outside);
      for (let changes = 1 + random.below(3); changes > 0; changes--) name = mutateText(random, name, []);
      await attempt(name.slice(0, 1000), false);
    }
  } finally {
    await guards.stop();
  }
  expect(failures.slice(0, 10).join('\n')).toBe('');
});
