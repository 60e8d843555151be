// `npm run test:iotests [-- --six | --short] [-- ARGS]`: QEMU's own test suite on our qemu-img (see
// ../shared/iotests/README.md): the open raw and qcow2 pairs; with --six those that need only create, info, convert, check,
// map and compare; with --short a handful. Further arguments go to the suite's runner.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

const root = resolve(import.meta.dirname, '../..');
const suite = resolve(root, '../shared/iotests');
if (!existsSync(join(suite, 'run'))) {
  process.stderr.write('iotests: SKIPPED, ../shared/iotests is not here\n');
  process.exit(0);
}
const SIX = new Set(['create', 'info', 'convert', 'check', 'map', 'compare', '--help', '--version']);
const args = process.argv.slice(2);
const six = args.includes('--six');
const short = args.includes('--short');
const SHORT = new Set([
  'raw 032',
  'raw 221',
  'qcow2 012',
  'qcow2 025',
  'qcow2 104',
  'qcow2 179',
  'qcow2 290',
]);

const control = new Map(
  JSON.parse(readFileSync(join(suite, 'control.json'), 'utf8')).pairs.map((pair) => [
    `${pair.fmt} ${pair.test}`,
    pair,
  ]),
);
const pairs = readFileSync(join(suite, 'open.pairs'), 'utf8')
  .split('\n')
  .map((line) => line.replace(/#.*/, '').trim().split(/\s+/).join(' '))
  .filter((pair) => /^(raw|qcow2)[ :]/.test(pair))
  .filter((pair) => {
    const uses = Object.keys(control.get(pair)?.uses ?? {});
    if (short) return SHORT.has(pair);
    return !six || uses.every((use) => SIX.has(use));
  });
const list = join(mkdtempSync(join(tmpdir(), 'imgd-iotests-')), 'pairs');
writeFileSync(list, `${pairs.join('\n')}\n`);
process.stdout.write(`${pairs.length} pairs\n`);
if (args.includes('--list')) {
  process.stdout.write(`${pairs.join('\n')}\n`);
  process.exit(0);
}
const rest = args.filter((arg) => arg !== '--six' && arg !== '--short');
const done = spawnSync(
  join(suite, 'run'),
  [
    '--img',
    `${process.execPath} ${resolve(root, process.env.IMGD_DIST ?? 'dist', 'clients/qemu-img/main.js')}`,
    '--pairs',
    list,
    ...rest,
  ],
  { stdio: 'inherit', env: { ...process.env, IMGD_SOCKET: '' } },
);
process.exit(done.status ?? 1);
