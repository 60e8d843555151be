/** Attacks on image roots: names in requests and in images that lead out of them, each refused with its named check. */
import { existsSync, mkdirSync, readFileSync, realpathSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { runOperation } from '../../src/engine/index.js';
import { createPacer } from '../../src/engine/operations/pacer.js';
import type { OperationName } from '../../src/protocol/commands/index.js';
import { tempDir } from '../support/reference.js';
import { type Answer, Peer, startDaemon } from './support/daemon.js';

const base = realpathSync(tempDir());
const root = join(base, 'root');
const outside = join(base, 'outside');
/** Begins with the root's name and is none of its. */
const beside = join(base, 'root-beside');
const secret = join(outside, 'secret.raw');
const inRoot = (name: string): string => join(root, name);

/** An operation with nobody to refuse it. */
async function freely(name: OperationName, params: object, cwd = root): Promise<void> {
  const { signal } = new AbortController();
  const pacer = createPacer(signal);
  const done = await runOperation(name, params, {
    cwd,
    policy: {},
    signal,
    progress: () => undefined,
    output: () => undefined,
    pace: (bytes) => pacer.pace(bytes),
    setRate: () => undefined,
  });
  if (done.isErr()) throw done.error;
}
const qcow2 = (name: string, more: object = {}): Promise<void> =>
  freely('image-create', { filename: inRoot(name), format: 'qcow2', size: 65536, ...more });
const backed = (name: string, backing: string, format = 'raw'): Promise<void> =>
  qcow2(name, { backing, 'backing-format': format, 'no-backing-check': true });
const vmdk = (name: string, extent: string): void =>
  writeFileSync(
    inRoot(name),
    `# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 128 FLAT "${extent}" 0\n`,
  );

let peer: Peer;
beforeAll(async () => {
  for (const folder of [root, outside, beside]) mkdirSync(folder);
  writeFileSync(secret, Buffer.alloc(65536, 0x53));
  writeFileSync(join(beside, 'b.raw'), Buffer.alloc(65536));
  writeFileSync(inRoot('own.raw'), Buffer.alloc(65536, 0x4f));
  symlinkSync(secret, inRoot('link.raw'));
  symlinkSync(outside, inRoot('folder'));
  symlinkSync('../outside', inRoot('relative'));
  symlinkSync(join(outside, 'made-through-link.raw'), inRoot('dangling.raw'));
  symlinkSync('dangling.raw', inRoot('twice.raw'));
  const daemon = await startDaemon(join(base, 'r.sock'), ['--root', root], { real: true });
  peer = await Peer.connect(daemon.socket);
  return () => void daemon.process.kill('SIGKILL');
});

/** The check that refused; the daemon's answer where none did. */
async function refusedBy(method: string, params: object): Promise<unknown> {
  const answer: Answer = await peer.call(method, { cwd: root, ...params });
  const { kind, check } = answer.error?.data ?? {};
  return kind === 'denied' ? check : answer;
}
const read = (filename: string, more: object = {}): Promise<unknown> =>
  refusedBy('image-map', { image: { filename, ...more } });

describe('a name in a request', () => {
  it('is refused outside of the roots, however it is written', async () => {
    for (const name of [
      secret,
      '../outside/secret.raw',
      `${root}/../outside/secret.raw`,
      `${root}/none/../../outside/secret.raw`,
      `${beside}/b.raw`,
      'link.raw',
      'folder/secret.raw',
      'relative/secret.raw',
      `file:${secret}`,
      '/proc/self/root/etc/passwd',
    ]) {
      expect(await read(name, { format: 'raw' }), name).toBe('image-root');
    }
    expect(await read('own.raw', { format: 'raw' })).toMatchObject({ result: expect.anything() });
  });

  it('is refused inside of json: and of option strings', async () => {
    const file = { driver: 'file', filename: secret };
    const json = (options: object): string => `json:${JSON.stringify(options)}`;
    expect(await read(json({ driver: 'raw', file }))).toBe('image-root');
    expect(await read(json({ 'file.filename': '../outside/secret.raw' }))).toBe('image-root');
    await qcow2('plain.qcow2');
    const over = {
      driver: 'qcow2',
      file: { driver: 'file', filename: 'plain.qcow2' },
      backing: { driver: 'raw', file },
    };
    expect(await read(json(over))).toBe('image-root');
    expect(await read(json({ driver: 'blkdebug', config: secret, image: { filename: 'own.raw' } }))).toBe(
      'image-root',
    );
    expect(await read(`blkdebug:${secret}:own.raw`)).toBe('image-root');
    const options = `driver=raw,file.driver=file,file.filename=${secret}`;
    expect(await refusedBy('image-map', { image: { 'image-opts': options } })).toBe('image-root');
  });

  it('is refused as what is to be made, and nothing is', async () => {
    const create = (filename: string, more: object = {}): Promise<unknown> =>
      refusedBy('image-create', { filename, format: 'raw', size: 65536, ...more });
    const made = join(outside, 'made.raw');
    expect(await create(made)).toBe('image-root');
    expect(await create('../outside/made.raw')).toBe('image-root');
    expect(await create('folder/made.raw')).toBe('image-root');
    expect(await create('link.raw')).toBe('image-root');
    // A symlink to what is not there yet.
    expect(await create('dangling.raw')).toBe('image-root');
    expect(await create('twice.raw')).toBe('image-root');
    const dataFile = { format: 'qcow2', options: { data_file: made } };
    expect(await create('with-data.qcow2', dataFile)).toBe('image-root');
    const onTop = { format: 'qcow2', backing: secret, 'backing-format': 'raw' };
    expect(await create('on-top.qcow2', onTop)).toBe('image-root');
    const convert = (filename: string, more: object = {}): Promise<unknown> =>
      refusedBy('image-convert', {
        sources: [{ filename: 'own.raw', format: 'raw' }],
        target: { filename, format: 'raw' },
        ...more,
      });
    expect(await convert(made)).toBe('image-root');
    expect(await convert('dangling.raw')).toBe('image-root');
    expect(await convert('link.raw', { create: false })).toBe('image-root');
    const dd = { image: { filename: 'own.raw', format: 'raw' }, target: { filename: made, format: 'raw' } };
    expect(await refusedBy('image-dd', dd)).toBe('image-root');
    expect(existsSync(made)).toBe(false);
    expect(existsSync(join(outside, 'made-through-link.raw'))).toBe(false);
    expect(readFileSync(secret)).toEqual(Buffer.alloc(65536, 0x53));
  });

  it('is refused where an image is to be held, and where somebody asks who holds it', async () => {
    const file = { driver: 'file', filename: secret };
    expect(await refusedBy('blockdev-add', { driver: 'raw', 'node-name': 'n', file })).toBe('image-root');
    expect(await refusedBy('query-image-users', { filename: secret })).toBe('image-root');
    expect(await refusedBy('query-image-users', { filename: 'link.raw' })).toBe('image-root');
  });
});

describe('a name in an image', () => {
  it('is refused as its backing file', async () => {
    await backed('absolute.qcow2', secret);
    await backed('dots.qcow2', '../outside/secret.raw');
    await backed('symlink.qcow2', 'link.raw');
    await backed('folder.qcow2', 'folder/secret.raw');
    await backed('json.qcow2', `json:{"driver":"raw","file":{"driver":"file","filename":"${secret}"}}`);
    // The second layer is as good a place as the first.
    await backed('deep.qcow2', 'absolute.qcow2', 'qcow2');
    for (const name of ['absolute', 'dots', 'symlink', 'folder', 'json', 'deep']) {
      expect(await read(`${name}.qcow2`), name).toBe('image-root-backing');
    }
    const source = { filename: 'absolute.qcow2' };
    expect(
      await refusedBy('image-convert', {
        sources: [source],
        target: { filename: 'copy.raw', format: 'raw' },
      }),
    ).toBe('image-root-backing');
    expect(existsSync(inRoot('copy.raw'))).toBe(false);
    for (const [method, params] of [
      ['image-commit', { image: source }],
      ['image-rebase', { image: source }],
      ['image-measure', { image: source, format: 'raw' }],
      ['image-compare', { a: source, b: { filename: 'own.raw', format: 'raw' } }],
    ] as const) {
      expect(await refusedBy(method, params), method).toBe('image-root-backing');
    }
    // One layer alone is looked at; the chain is not.
    expect(await refusedBy('image-info', { image: source })).toMatchObject({ result: { images: [{}] } });
    const chain = await refusedBy('image-info', { image: source, 'backing-chain': true });
    expect(chain).toMatch(/^image-root/);
  });

  it('is refused as its data file', async () => {
    const options = { data_file: join(outside, 'data.raw'), data_file_raw: true };
    await qcow2('data.qcow2', { options });
    expect(await read('data.qcow2')).toBe('image-root-child');
    symlinkSync(join(outside, 'data.raw'), inRoot('data-link.raw'));
    await qcow2('data-link.qcow2', { options: { data_file: inRoot('own-data.raw') } });
    const bytes = readFileSync(inRoot('data-link.qcow2'));
    const at = bytes.indexOf(inRoot('own-data.raw'));
    bytes.fill(0, at, at + inRoot('own-data.raw').length);
    bytes.write('data-link.raw', at);
    writeFileSync(inRoot('data-link.qcow2'), bytes);
    expect(await read('data-link.qcow2')).toBe('image-root-child');
  });

  it('is refused as its extent', async () => {
    vmdk('absolute.vmdk', secret);
    vmdk('dots.vmdk', '../outside/secret.raw');
    vmdk('symlink.vmdk', 'link.raw');
    vmdk('good.vmdk', 'own.raw');
    for (const name of ['absolute', 'dots', 'symlink']) {
      expect(await read(`${name}.vmdk`), name).toBe('image-root-child');
      // It is of no use to only look.
      expect(await refusedBy('image-info', { image: { filename: `${name}.vmdk` } })).toBe('image-root-child');
    }
    expect(await read('good.vmdk')).toMatchObject({ result: expect.anything() });
  });

  it('is refused as its new backing file', async () => {
    await backed('rebased.qcow2', 'own.raw');
    const rebase = { image: { filename: 'rebased.qcow2' }, backing: secret, 'backing-format': 'raw' };
    expect(await refusedBy('image-rebase', rebase)).toMatch(/^image-root/);
    // Without a look at it the name is written, and refused when it is followed.
    expect(await refusedBy('image-rebase', { ...rebase, unsafe: true })).toMatchObject({ result: {} });
    expect(await read('rebased.qcow2')).toBe('image-root-backing');
  });
});
