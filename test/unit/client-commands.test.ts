/** What each subcommand asks for, and what it says of the answer: the operations themselves are stubs. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { run } from '../../clients/qemu-img/cli.js';
import type { Listeners } from '../../clients/qemu-img/declare.js';
import { RequestError } from '../../clients/qemu-img/errors.js';
import { FORMATS } from '../../clients/qemu-img/help.js';
import type { Reply } from '../../clients/qemu-img/transport.js';
import { VERSION } from '../../clients/qemu-img/version.js';
import { driverNames } from '../../src/engine/formats/index.js';
import { PROTOCOLS } from '../../src/engine/node/open-storage.js';

interface Outcome {
  code: number;
  out: string;
  err: string;
  method: string | undefined;
  params: Record<string, unknown> | undefined;
}

type Answer = (listeners: Required<Listeners>) => unknown;

async function call(args: string[], answer: Answer = () => ({})): Promise<Outcome> {
  const outcome: Outcome = { code: -1, out: '', err: '', method: undefined, params: undefined };
  outcome.code = await run(args, {
    write(descriptor, text) {
      if (descriptor === 1) outcome.out += text;
      else outcome.err += text;
    },
    transport: {
      async run(method, params, listeners): Promise<Reply> {
        const { cwd, ...rest } = params as { cwd: string };
        expect(cwd).toBe(process.cwd());
        outcome.method = method;
        outcome.params = rest;
        const result = answer(listeners);
        return result instanceof RequestError ? { error: result } : { result };
      },
    },
  });
  return outcome;
}

const failure =
  (message: string, kind = 'invalid', hint?: string) =>
  () =>
    new RequestError(message, kind, hint);

describe('the program', () => {
  it('says what is wrong with the command line', async () => {
    expect(await call([])).toMatchObject({
      code: 1,
      err: "qemu-img: Not enough arguments\nTry 'qemu-img --help' for more info\n",
    });
    expect((await call(['foo'])).err).toBe(
      "qemu-img: Command not found: foo\nTry 'qemu-img --help' for more info\n",
    );
    expect((await call(['-T', 'x', '--trace=y', 'info'])).err).toContain('Expecting one image file name');
  });

  it('shows its version and help', async () => {
    expect((await call(['-V'])).out).toMatch(/^qemu-img version 10\.0\.2 \(imgd \d+\.\d+\.\d+\)\n/);
    const { out } = await call(['--help']);
    for (const name of ['check', 'compare', 'convert', 'create', 'info', 'map'])
      expect(out).toContain(`  ${name} - `);
    for (const name of ['check', 'compare', 'convert', 'create', 'info', 'map']) {
      expect((await call([name, '--help'])).out).toContain(`qemu-img ${name} `);
    }
  });

  it('knows the version of the package and the formats of the engine', () => {
    const manifest = JSON.parse(readFileSync('package.json', 'utf8')) as { version: string };
    expect(VERSION).toBe(manifest.version);
    // Throttle groups cannot be made yet.
    const usable = [...driverNames, ...PROTOCOLS].filter((name) => name !== 'throttle');
    expect(FORMATS).toEqual(usable.sort());
  });

  it('shows the hints of an error behind it', async () => {
    const { code, err } = await call(
      ['info', 'x'],
      failure('Failed to get shared "write" lock', 'locked', 'Is another process using the image [x]?'),
    );
    expect(code).toBe(1);
    expect(err).toBe(
      'qemu-img: Failed to get shared "write" lock\nIs another process using the image [x]?\n',
    );
  });
});

describe('create', () => {
  it('asks for what the options say', async () => {
    const { method, params } = await call([
      'create',
      '-qf',
      'qcow2',
      '-o',
      'a=1',
      '-o',
      'b',
      '-b',
      'base',
      '-F',
      'raw',
      '-u',
      '--object',
      'secret,id=s,data=x',
      'file',
      '1.5k',
    ]);
    expect(method).toBe('image-create');
    expect(params).toEqual({
      objects: [{ 'qom-type': 'secret', id: 's', data: 'x' }],
      filename: 'file',
      format: 'qcow2',
      size: 1536,
      options: { a: '1', b: 'on' },
      backing: 'base',
      'backing-format': 'raw',
      'no-backing-check': true,
    });
  });

  it('shows the line that the operation says, but not with -q, and the name before errors', async () => {
    const say: Answer = ({ onText }) => onText('stdout', 'Formatting\n');
    expect((await call(['create', 'x', '1'], say)).out).toBe('Formatting\n');
    expect((await call(['create', '-q', 'x', '1'], say)).out).toBe('');
    expect((await call(['create', 'x'], failure('no size'))).err).toBe('qemu-img: x: no size\n');
    expect((await call(['create', 'x'], failure('x: no size'))).err).toBe('qemu-img: x: no size\n');
  });

  it('lists a format’s options', async () => {
    const options = [
      { name: 'cluster_size', type: 'size', help: 'qcow2 cluster size' },
      { name: 'data_file_raw', type: 'bool', help: 'H', default: false },
    ];
    const { out, params } = await call(['create', '-f', 'qcow2', '-o', 'a=1,help'], () => ({ options }));
    expect(params).toEqual({ format: 'qcow2' });
    expect(out).toBe(`Supported qcow2 options:
  cluster_size=<size>    - qcow2 cluster size
  data_file_raw=<bool (on/off)> - H (default: off)

The protocol level may support further options.
Specify the target filename to include those options.
`);
    const named = await call(['convert', '-o', 'help', 'a', 'b'], () => ({ options: [] }));
    expect(named.params).toEqual({ format: 'raw', filename: 'b' });
    expect(named.out).toBe('Supported options:\n');
  });
});

describe('convert', () => {
  it('asks for what the options say', async () => {
    const words =
      '-f raw -O qcow2 -o a=1 -c -S 64k -l snap -T none -t off -B b -F raw -U -m 3 -W -r 1M --salvage a1 a2 z';
    const { code, params } = await call(['convert', ...words.split(' ')]);
    expect(code).toBe(0);
    const source = { format: 'raw', 'force-share': true, cache: 'none' };
    expect(params).toEqual({
      sources: [
        { filename: 'a1', ...source },
        { filename: 'a2', ...source },
      ],
      target: { filename: 'z', format: 'qcow2', cache: 'none' },
      create: true,
      options: { a: '1' },
      backing: 'b',
      'backing-format': 'raw',
      compress: true,
      'sparse-size': 65536,
      snapshot: 'snap',
      salvage: true,
      'rate-limit': 1048576,
      parallel: 3,
      'out-of-order': true,
    });
  });

  it('writes into what is there with -n', async () => {
    const { params } = await call([
      'convert',
      '-nC',
      '--target-is-zero',
      '--target-image-opts',
      'a',
      'driver=raw',
    ]);
    expect(params).toEqual({
      sources: [{ filename: 'a' }],
      target: { 'image-opts': 'driver=raw', cache: 'unsafe' },
      create: false,
      'target-is-zero': true,
      'copy-offloading': true,
    });
  });

  it('shows progress with -p, not with -q, and ends the line after errors', async () => {
    const half: Answer = ({ onProgress }) => {
      onProgress({ phase: 'copy', done: 0, total: 200 });
      onProgress({ phase: 'copy', done: 1, total: 200 });
      onProgress({ phase: 'copy', done: 100, total: 200 });
      onProgress({ phase: 'flush', done: 200, total: 200 });
    };
    expect((await call(['convert', '-p', 'a', 'b'], half)).out).toBe(
      '    (0.00/100%)\r    (50.00/100%)\r    (100.00/100%)\r\n',
    );
    expect((await call(['convert', '-pq', 'a', 'b'], half)).out).toBe('');
    expect((await call(['convert', '-p', 'a', 'b'], failure('no'))).out).toBe('    (0.00/100%)\r\n');
  });

  it('prints progress once on SIGUSR1 without -p', async () => {
    const { out, err } = await call(['convert', 'a', 'b'], ({ onProgress }) => {
      onProgress({ phase: 'copy', done: 0, total: 4 });
      process.emit('SIGUSR1', 'SIGUSR1');
      onProgress({ phase: 'copy', done: 1, total: 4 });
      onProgress({ phase: 'copy', done: 2, total: 4 });
    });
    expect(out).toBe('');
    expect(err).toBe('    (25.00/100%)\n');
  });
});

describe('info', () => {
  const image = { filename: 'x', format: 'raw', 'virtual-size': 1024, 'actual-size': 0 };

  it('asks for what the options say', async () => {
    const { params } = await call(['info', '-bU', '-f', 'raw', 'x'], () => ({ images: [image, image] }));
    expect(params).toEqual({
      image: { filename: 'x', format: 'raw', 'force-share': true },
      'backing-chain': true,
    });
    const opts = await call(['info', '--image-opts', 'driver=raw'], () => ({ images: [image] }));
    expect(opts.params).toEqual({ image: { 'image-opts': 'driver=raw' } });
  });

  it('shows one image as an object, a chain as a list, or both as text', async () => {
    const one = 'image: x\nfile format: raw\nvirtual size: 1 KiB (1024 bytes)\ndisk size: 0 B\n';
    expect((await call(['info', 'x'], () => ({ images: [image] }))).out).toBe(one);
    expect((await call(['info', '-b', 'x'], () => ({ images: [image, image] }))).out).toBe(`${one}\n${one}`);
    const json = await call(['info', '--output=json', 'x'], () => ({ images: [image] }));
    expect(JSON.parse(json.out)).toEqual(image);
    const chain = await call(['info', '-b', '--output=json', 'x'], () => ({ images: [image] }));
    expect(JSON.parse(chain.out)).toEqual([image]);
  });
});

describe('check', () => {
  const check = (counts: object) => () => ({
    check: { filename: 'x', format: 'qcow2', 'check-errors': 0, ...counts },
  });

  it('has an exit code for each state', async () => {
    expect((await call(['check', 'x'], check({}))).code).toBe(0);
    expect((await call(['check', 'x'], check({ corruptions: 1, leaks: 1 }))).code).toBe(2);
    expect((await call(['check', 'x'], check({ leaks: 1 }))).code).toBe(3);
    const failed = await call(['check', 'x'], check({ 'check-errors': 1 }));
    expect(failed).toMatchObject({ code: 1, err: 'qemu-img: Check failed\n' });
    const none = await call(
      ['check', 'x'],
      failure('This image format does not support checks', 'unsupported'),
    );
    expect(none.code).toBe(63);
    expect((await call(['check', 'x'], failure('Could not open', 'unsupported'))).code).toBe(1);
  });

  it('shows what was found', async () => {
    const found = check({
      corruptions: 1,
      leaks: 2,
      'total-clusters': 1024,
      'allocated-clusters': 47,
      'fragmented-clusters': 2,
      'image-end-offset': 3473408,
    });
    expect((await call(['check', 'x'], found)).out).toBe(`
1 errors were found on the image.
Data may be corrupted, or further writes to the image may corrupt it.

2 leaked clusters were found on the image.
This means waste of disk space, but no harm to data.
47/1024 = 4.59% allocated, 4.26% fragmented, 0.00% compressed clusters
Image end offset: 3473408
`);
    expect((await call(['check', '-q', 'x'], found)).out).toBe('');
  });

  it('shows what was repaired', async () => {
    const answer = () => ({
      check: { filename: 'x', format: 'qcow2', 'check-errors': 0, 'leaks-fixed': 2 },
      repaired: { filename: 'x', format: 'qcow2', 'check-errors': 0, 'leaks-fixed': 2 },
    });
    const { out, params } = await call(['check', '-r', 'leaks', 'x'], answer);
    expect(params).toMatchObject({ repair: 'leaks' });
    expect(out).toBe(`The following inconsistencies were found and repaired:

    2 leaked clusters
    0 corruptions

Double checking the fixed image now...
No errors were found on the image.
`);
    expect((await call(['check', '-q', '-r', 'all', 'x'], answer)).out).toBe('');
  });
});

describe('map', () => {
  const entry = (start: number, more: object) => ({
    start,
    length: 65536,
    depth: 0,
    present: true,
    zero: false,
    data: true,
    compressed: false,
    ...more,
  });

  it('asks for a stream of a range', async () => {
    const { params } = await call(['map', '-s', '1k', '-l', '2k', 'x']);
    expect(params).toEqual({
      image: { filename: 'x' },
      stream: true,
      'start-offset': 1024,
      'max-length': 2048,
    });
  });

  it('prints a table as entries come', async () => {
    const { out } = await call(['map', 'x'], ({ onEntries }) => {
      onEntries([entry(0, { offset: 0, filename: 'x' })]);
      onEntries([entry(65536, { zero: true, data: false }), entry(131072, { offset: 4096, filename: 'y' })]);
    });
    expect(out).toBe(`Offset          Length          Mapped to       File
0               0x10000         0               x
0x20000         0x10000         0x1000          y
`);
    expect((await call(['map', 'x'])).out).toBe('Offset          Length          Mapped to       File\n');
  });

  it('prints JSON, one line an entry', async () => {
    const { out } = await call(['map', '--output', 'json', 'x'], ({ onEntries }) => {
      onEntries([entry(0, { offset: 8 })]);
      onEntries([entry(65536, { zero: true, data: false })]);
    });
    expect(out).toBe(
      '[{ "start": 0, "length": 65536, "depth": 0, "present": true, "zero": false, "data": true, "compressed": false, "offset": 8},\n' +
        '{ "start": 65536, "length": 65536, "depth": 0, "present": true, "zero": true, "data": false, "compressed": false}]\n',
    );
  });

  it('cannot show compressed data in a table', async () => {
    const { code, out, err } = await call(['map', 'x'], ({ onEntries }) =>
      onEntries([entry(0, { compressed: true })]),
    );
    expect({ code, err }).toEqual({
      code: 1,
      err: 'qemu-img: File contains external, encrypted or compressed clusters.\n',
    });
    expect(out).toBe('Offset          Length          Mapped to       File\n');
  });
});

describe('compare', () => {
  it('asks for what the options say', async () => {
    const { params } = await call(
      ['compare', '-sU', '-f', 'raw', '-F', 'qcow2', '-T', 'unsafe', 'a', 'b'],
      () => ({
        identical: true,
        text: 'Images are identical.',
      }),
    );
    expect(params).toEqual({
      a: { filename: 'a', format: 'raw', 'force-share': true, cache: 'unsafe' },
      b: { filename: 'b', format: 'qcow2', 'force-share': true, cache: 'unsafe' },
      strict: true,
    });
  });

  it('has an exit code for each outcome', async () => {
    const differ = () => ({
      identical: false,
      reason: 'content',
      offset: 9,
      text: 'Content mismatch at offset 9!',
    });
    expect(await call(['compare', 'a', 'b'], differ)).toMatchObject({
      code: 1,
      out: 'Content mismatch at offset 9!\n',
    });
    expect(await call(['compare', '-q', 'a', 'b'], differ)).toMatchObject({ code: 1, out: '' });
    expect((await call(['compare', 'a'])).code).toBe(1);
    expect((await call(['compare', '-T', 'zz', 'a', 'b'])).code).toBe(2);
    expect((await call(['compare', '--object', 'zz', 'a', 'b'])).code).toBe(2);
    expect((await call(['compare', 'a', 'b'], failure("Could not open 'a'"))).code).toBe(2);
    expect((await call(['compare', 'a', 'b'], failure('Sector allocation test failed'))).code).toBe(3);
    expect((await call(['compare', 'a', 'b'], failure('Error while reading offset 0 of a: x'))).code).toBe(4);
  });
});
