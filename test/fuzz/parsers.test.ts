/** Parsers of text that a stranger may have written: file names, option strings, property lists, descriptors. */
import { expect, test } from 'vitest';
import { plistData, splitResourceFork } from '../../src/engine/formats/dmg/resources.js';
import { parseCreateType, parseExtents } from '../../src/engine/formats/vmdk/descriptor.js';
import {
  type FlatOptions,
  fromJson,
  fromOptionString,
  protocolOf,
} from '../../src/engine/node/flat-options.js';
import { parseOption } from '../../src/engine/node/option-table.js';
import { parseSize, splitOptions } from '../../src/protocol/options.js';
import { descriptor } from '../unit/vmdk-images.js';
import { type FuzzResult, fuzzText, fuzzTimeout } from './harness.js';
import { mutateText } from './mutate.js';
import type { Random } from './random.js';

const SHORT = 1000;

function change(random: Random, text: string): string {
  let changed = text;
  for (let count = 1 + random.below(4); count > 0; count--) changed = mutateText(random, changed, []);
  // Long inputs show what takes more than linear time.
  return random.once(100) ? changed.repeat(1 + Math.floor(200_000 / (changed.length + 1))) : changed;
}

function check(result: FuzzResult): void {
  expect(result.failures.join('\n')).toBe('');
  expect(result.runs).toBeGreaterThan(0);
}

function useAll(flat: FlatOptions): void {
  for (const [key] of [...flat.entries()]) {
    flat.hasChild(key);
    flat.takeChild(key);
  }
  flat.takeString('file.filename');
  flat.takeBool('read-only');
  flat.takeDeclared([{ name: 'size', type: 'size', help: '' }]);
}

const json = [
  '{"driver":"qcow2","file":{"driver":"file","filename":"/x/y"},"backing":null,"read-only":true}',
  "{'driver':'vmdk','file.filename':'a\\'b','extents':[{'filename':'x'},1,2.5,-3e400]}",
  `${'{"a":'.repeat(30)}1${'}'.repeat(30)}`,
  '{"__proto__":{"x":1},"constructor":{"prototype":1}}',
];
test('json: file names', { timeout: fuzzTimeout }, async () => {
  check(await fuzzText('json', json, SHORT, change, (text) => useAll(fromJson(text))));
});

const options = [
  'driver=qcow2,file.driver=file,file.filename=/a,,b,read-only=on',
  'size=1G,preallocation=off,x',
  '',
];
test('option strings', { timeout: fuzzTimeout }, async () => {
  check(
    await fuzzText('options', options, SHORT, change, (text) => {
      splitOptions(text, 'id');
      useAll(fromOptionString(text));
      protocolOf(text);
    }),
  );
});

const sizes = ['1G', '0x10', '1.5k', '  +123', '9007199254740991', '8191.999P', '1e3'];
test('sizes and single options', { timeout: fuzzTimeout }, async () => {
  check(
    await fuzzText('sizes', sizes, SHORT, change, (text) => {
      const size = parseSize(text);
      if (size !== undefined && !Number.isNaN(size) && !(Number.isSafeInteger(size) && size >= 0)) {
        throw new Error(`parseSize gave ${size}`);
      }
      for (const type of ['string', 'bool', 'number', 'size'] as const) {
        try {
          parseOption({ name: 'x', type, help: '' }, text);
        } catch (error) {
          if ((error as Error).name !== 'ImageError') throw error;
        }
      }
    }),
  );
});

const list = `<?xml version="1.0"?><plist version="1.0"><dict><key>blkx</key><array><dict><key>Data</key><data>\n${Buffer.alloc(300, 'mish').toString('base64')}\n</data></dict></array></dict></plist>`;
test('property lists and resource forks of dmg', { timeout: fuzzTimeout }, async () => {
  check(
    await fuzzText('property list', [list], SHORT, change, (text) => plistData(Buffer.from(text, 'latin1'))),
  );
  const fork = '\0\0\0\x10\0\0\0\x20\0\0\0\x10\0\0\0\x00\0\0\0\x04mish\0\0\0\x04mish';
  check(
    await fuzzText('resource fork', [fork], SHORT, change, (text) =>
      splitResourceFork(Buffer.from(text, 'latin1')),
    ),
  );
});

const descriptors = [
  descriptor({
    lines: ['RW 16 FLAT "a.vmdk" 0', 'RW 8 ZERO', 'RDONLY 16 VMFS "b c.vmdk" 4', 'NOACCESS 4 SPARSE "x"'],
  }),
  descriptor({ type: 'vmfsSparse', parent: '/a/b.vmdk', lines: ['RW 16 VMFSSPARSE "../a.vmdk"'] }),
];
test('descriptors of vmdk', { timeout: fuzzTimeout }, async () => {
  check(
    await fuzzText('descriptor', descriptors, SHORT, change, (text) => {
      parseCreateType(text);
      for (const line of parseExtents(text)) {
        if (line.sectors < 0n) throw new Error(`an extent of ${line.sectors} sectors`);
      }
    }),
  );
});
