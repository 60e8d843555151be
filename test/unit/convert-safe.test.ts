import { createHash } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it, vi } from 'vitest';
import { runOperation } from '../../src/engine/index.js';
import type { ImageNode } from '../../src/engine/node/image.js';
import type { OperationContext } from '../../src/engine/operations/context.js';
import { stage } from '../../src/engine/operations/staged.js';
import { openFile } from '../../src/engine/storage/file.js';
import { permissionsFor } from '../../src/engine/storage/permissions.js';
import { tempDir } from '../support/reference.js';

const MiB = 1024 * 1024;
const folder = tempDir();
const at = (...names: string[]) => join(folder, ...names);
const source = at('source.raw');
const content = Buffer.alloc(21 * MiB + 512);
const digest = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');

function pattern(bytes: Buffer, seed: number): void {
  for (let n = 0; n < bytes.length; n += 4) bytes.writeUInt32LE((n * 2_654_435_761 + seed) >>> 0, n);
}

beforeAll(() => {
  pattern(content, 1);
  content.fill(0, 5 * MiB, 13 * MiB + 4096);
  content.fill(0, 20 * MiB);
  writeFileSync(source, content);
});

async function run(
  name: Parameters<typeof runOperation>[0],
  params: Record<string, unknown>,
  more: Partial<OperationContext> = {},
) {
  const text: string[] = [];
  const result = await runOperation(name, params as never, {
    ...{ cwd: folder, policy: {}, signal: new AbortController().signal },
    ...{ progress() {}, pace: () => undefined, setRate() {} },
    output: (said) => text.push('text' in said ? said.text : ''),
    ...more,
  });
  return result.isOk()
    ? { result: result.value as Record<string, unknown>, text: text.join('') }
    : { error: result.error, text: text.join('') };
}
const convert = (target: string, more: object = {}, context: Partial<OperationContext> = {}) =>
  run(
    'image-convert',
    {
      sources: [{ filename: source, format: 'raw' }],
      target: { filename: target, format: target.split('.').at(-1) },
      ...more,
    },
    context,
  );
const parts = (of: string) => readdirSync(of).filter((name) => name.includes('imgd-part'));

describe('the content hash of a conversion', () => {
  it.each([
    ['into raw', 'a.raw', {}],
    ['out of order, many at once', 'b.raw', { 'out-of-order': true, parallel: 8 }],
    ['compressed', 'c.qcow2', { compress: true }],
    ['zeros written', 'd.raw', { 'sparse-size': 0 }],
  ])('is of the guest bytes in order: %s', async (_, name, more) => {
    const { result } = await convert(at(name), { sha256: true, ...more });
    expect(result!.sha256).toBe(digest(content));
  });

  it('is over all sources, and over what stays in a backing file', async () => {
    const two = [
      { filename: source, format: 'raw' },
      { filename: source, format: 'raw' },
    ];
    const both = await convert(at('e.raw'), { sources: two, sha256: true });
    expect(both.result!.sha256).toBe(digest(Buffer.concat([content, content])));
    const overlay = at('overlay.qcow2');
    await run('image-create', {
      filename: overlay,
      format: 'qcow2',
      backing: source,
      'backing-format': 'raw',
    });
    const backed = await convert(at('f.qcow2'), {
      sources: [{ filename: overlay }],
      ...{ backing: source, 'backing-format': 'raw', sha256: true },
    });
    expect(backed.result).toMatchObject({ sha256: digest(content), written: 0 });
  });

  it('is verified: a target of other content is not left', async () => {
    const expected = digest(content);
    const good = await convert(at('g.qcow2'), { 'expect-sha256': expected.toUpperCase() });
    expect(good.result!.sha256).toBe(expected);
    for (const more of [{}, { 'keep-failed': true }, { atomic: true }]) {
      const bad = await convert(at('h.qcow2'), { 'expect-sha256': '0'.repeat(64), ...more });
      expect(bad.error).toMatchObject({
        kind: 'corrupt',
        message: `The content is not what was expected: its SHA-256 is ${expected}`,
        context: { check: 'sha256' },
      });
      expect(readdirSync(folder).filter((name) => name.includes('h.qcow2'))).toEqual([]);
    }
    // What was there before has been overwritten: it is not whole, and it goes too. With `atomic` it stays.
    writeFileSync(at('i.raw'), 'before');
    await convert(at('i.raw'), { 'expect-sha256': '0'.repeat(64), atomic: true });
    expect(readFileSync(at('i.raw'), 'utf8')).toBe('before');
    await convert(at('i.raw'), { 'expect-sha256': '0'.repeat(64) });
    expect(existsSync(at('i.raw'))).toBe(false);
  });

  it('may be BLAKE3, also beside SHA-256', async () => {
    // The content and the hash of 102,400 bytes in the test vectors that BLAKE3's authors give out.
    const path = at('vector.raw');
    writeFileSync(path, Buffer.from(Array.from({ length: 102_400 }, (_, index) => index % 251)));
    const vector = 'bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085';
    const sources = [{ filename: path, format: 'raw' }];
    const both = await convert(at('j.qcow2'), { sources, 'expect-blake3': vector, sha256: true });
    expect(both.result).toMatchObject({ blake3: vector, sha256: digest(readFileSync(path)) });
    const bad = await convert(at('k.qcow2'), { sources, 'expect-blake3': '0'.repeat(64) });
    expect(bad.error).toMatchObject({
      message: `The content is not what was expected: its BLAKE3 is ${vector}`,
      context: { check: 'blake3' },
    });
    expect(existsSync(at('k.qcow2'))).toBe(false);
  });

  it('a source that cannot be read ends it, and nobody waits for ever', async () => {
    const json = JSON.stringify({
      driver: 'raw',
      file: {
        driver: 'blkdebug',
        image: { driver: 'file', filename: source },
        'inject-error': [{ event: 'none', iotype: 'read', sector: 32_768 }],
      },
    });
    const { error } = await convert(at('j.raw'), { sources: [{ filename: `json:${json}` }], sha256: true });
    expect(error).toMatchObject({ kind: 'io' });
    expect(existsSync(at('j.raw'))).toBe(false);
  });
});

describe('a target under a temporary name', () => {
  it('takes its place when it is whole, with the access rights of the file before', async () => {
    mkdirSync(at('k'));
    writeFileSync(at('k', 't.qcow2'), 'before');
    chmodSync(at('k', 't.qcow2'), 0o640);
    let during: string[] = [];
    const { result } = await convert(
      at('k', 't.qcow2'),
      { atomic: true },
      {
        progress({ done }) {
          if (done > 0 && during.length === 0) {
            during = [...readdirSync(at('k')), readFileSync(at('k', 't.qcow2'), 'latin1').slice(0, 6)];
          }
        },
      },
    );
    expect(result).toMatchObject({ size: content.length });
    expect(during).toEqual(['.t.qcow2.imgd-part', 't.qcow2', 'before']);
    expect(readdirSync(at('k'))).toEqual(['t.qcow2']);
    expect(statSync(at('k', 't.qcow2')).mode & 0o777).toBe(0o640);
    const same = await run('image-compare', {
      a: { filename: source, format: 'raw' },
      b: { filename: at('k', 't.qcow2') },
    });
    expect(same.result).toMatchObject({ identical: true });
  });

  it('goes when the conversion fails, and leaves what was there', async () => {
    mkdirSync(at('l'));
    const target = at('l', 't.raw');
    writeFileSync(target, 'before');
    const abort = new AbortController();
    const context = { signal: abort.signal, progress: () => abort.abort() };
    expect((await convert(target, { atomic: true }, context)).error).toMatchObject({ kind: 'cancelled' });
    expect([readdirSync(at('l')), readFileSync(target, 'utf8')]).toEqual([['t.raw'], 'before']);
  });

  it('is refused where nothing can take its place, or the image is several files', async () => {
    symlinkSync(source, at('link.raw'));
    symlinkSync(at('victim'), at('.m.raw.imgd-part'));
    expect((await convert(at('m.raw'), { atomic: true })).error).toMatchObject({ kind: 'unsupported' });
    expect(existsSync(at('victim'))).toBe(false);
    unlinkSync(at('.m.raw.imgd-part'));
    expect((await convert(at('link.raw'), { atomic: true })).error).toMatchObject({ kind: 'unsupported' });
    const flat = { atomic: true, options: { subformat: 'monolithicFlat' } };
    expect((await convert(at('m.vmdk'), flat)).error).toMatchObject({
      kind: 'unsupported',
      message: expect.stringMatching(/several files/),
    });
    expect((await convert(source, { atomic: true })).error).toMatchObject({ kind: 'locked' });
    const existing = await convert(at('a.raw'), { atomic: true, create: false });
    expect(existing.error).toMatchObject({ kind: 'invalid' });
    expect(parts(folder)).toEqual([]);
  });

  it('names the target, not the temporary file, in errors and in the image', async () => {
    const { error } = await convert(at('none', 'n.raw'), { atomic: true });
    expect(error!.message).toContain(at('none', 'n.raw'));
    expect(error!.message).not.toContain('imgd-part');
    await convert(at('o.vmdk'), { atomic: true });
    expect(readFileSync(at('o.vmdk')).subarray(0, 4096).toString('latin1')).toMatch(/SPARSE "o\.vmdk"/);
  });

  it("is not another job's while it waits for its place", async () => {
    mkdirSync(at('q'));
    const target = at('q', 't.raw');
    let other: Awaited<ReturnType<typeof convert>> | undefined;
    const { result } = await convert(
      target,
      { atomic: true },
      {
        finalize: async () => {
          other = await convert(target, { atomic: true });
        },
      },
    );
    expect(other!.error).toMatchObject({ kind: 'locked' });
    expect(result).toMatchObject({ size: content.length });
    expect([readdirSync(at('q')), readFileSync(target).equals(content)]).toEqual([['t.raw'], true]);
  });

  it("stays where it is another job's by the time this one fails", async () => {
    mkdirSync(at('u'));
    const part = at('u', '.t.raw.imgd-part');
    const context = { cwd: folder, policy: {} } as OperationContext;
    const staged = await stage(at('u', 't.raw'), context);
    const locks = permissionsFor({ role: 'create', writable: true });
    const other = await openFile({ path: part, writable: true, create: 'truncate', locks });
    await expect(staged.keep()).rejects.toMatchObject({ kind: 'locked' });
    await staged.discard();
    expect(existsSync(part)).toBe(true);
    await other.close();
    await staged.discard();
    expect(existsSync(part)).toBe(false);
  });

  it('is made anew: what is put there in the meantime is not written to', async () => {
    mkdirSync(at('x'));
    const [target, part] = [at('x', 't.raw'), at('x', '.t.raw.imgd-part')];
    writeFileSync(part, 'left by a crash');
    writeFileSync(at('x', 'victim'), 'precious');
    linkSync(part, at('x', 'left'));
    expect((await convert(target, { atomic: true })).error).toBeUndefined();
    expect(readFileSync(at('x', 'left'), 'latin1')).toBe('left by a crash');
    // After the look at it, and before it is made.
    const staged = await stage(target, { cwd: folder, policy: {} } as OperationContext);
    symlinkSync(at('x', 'victim'), part);
    await expect(staged.clear()).rejects.toMatchObject({ context: { errno: 'ELOOP' } });
    await expect(staged.keep()).rejects.toMatchObject({ context: { errno: 'ELOOP' } });
    await staged.release();
    expect(readFileSync(at('x', 'victim'), 'latin1')).toBe('precious');
    const { createImage } = await import('../../src/engine/operations/create.js');
    const spec = { filename: target, format: 'raw', size: MiB, at: part };
    const context = { cwd: folder, policy: {} } as OperationContext;
    await expect(createImage(spec, context)).rejects.toMatchObject({ context: { errno: 'EEXIST' } });
    expect(readFileSync(at('x', 'victim'), 'latin1')).toBe('precious');
  });

  it('does not take the place of what came to be there meanwhile and is in use', async () => {
    mkdirSync(at('r'));
    const target = at('r', 't.raw');
    const locks = permissionsFor({ role: 'create', writable: true });
    let user: Awaited<ReturnType<typeof openFile>> | undefined;
    const finalize = async () => {
      user = await openFile({ path: target, writable: true, create: 'exclusive', locks });
      await user.write(0, Buffer.from('mine'));
    };
    const { error } = await convert(target, { atomic: true }, { finalize });
    expect(error).toMatchObject({ kind: 'locked' });
    await user!.close();
    expect([readdirSync(at('r')), readFileSync(target, 'latin1')]).toEqual([['t.raw'], 'mine']);
  });

  it('serves image-create, too', async () => {
    writeFileSync(at('p.qcow2'), 'before');
    const create = (more: object) =>
      run('image-create', { filename: at('p.qcow2'), format: 'qcow2', size: MiB, atomic: true, ...more });
    const bad = await create({ options: { cluster_size: 3 } });
    expect(bad.error).toMatchObject({ kind: 'invalid' });
    expect(readFileSync(at('p.qcow2'), 'utf8')).toBe('before');
    const { text } = await create({});
    expect(text).toContain(`Formatting '${at('p.qcow2')}'`);
    expect((await run('image-info', { image: { filename: at('p.qcow2') } })).result).toMatchObject({
      images: [{ format: 'qcow2' }],
    });
    expect(parts(folder)).toEqual([]);
  });
});

describe('a conversion that is gone on with', () => {
  /** Cut off after its first checkpoint, with the target as it was then. */
  async function cutOff(target: string, more: object = {}): Promise<unknown> {
    let mark: unknown;
    const abort = new AbortController();
    // Long enough passes for a checkpoint at each look at the clock.
    let now = 0;
    const clock = vi.spyOn(Date, 'now').mockImplementation(() => (now += 2000));
    const { error } = await convert(
      target,
      { resume: true, 'keep-failed': true, ...more },
      {
        signal: abort.signal,
        checkpoint: {
          last: undefined,
          keep: (kept) => {
            mark = kept;
            abort.abort();
          },
        },
      },
    );
    clock.mockRestore();
    expect(error).toMatchObject({ kind: 'cancelled' });
    return mark;
  }

  it.each([
    [true, 's.raw'],
    [false, 't.raw'],
  ])('fails without removing a target that was there before it: %s', async (existed, name) => {
    if (existed) writeFileSync(at(name), 'before');
    const last = await cutOff(at(name));
    expect(last).toMatchObject({ created: existed ? [] : [at(name)] });
    const abort = new AbortController();
    const { error } = await convert(
      at(name),
      { resume: true },
      { signal: abort.signal, progress: () => abort.abort(), checkpoint: { last, keep() {} } },
    );
    expect(error).toMatchObject({ kind: 'cancelled' });
    expect(existsSync(at(name))).toBe(existed);
  });

  it('fails without leaving extents that it had made', async () => {
    mkdirSync(at('v'));
    const flat = { options: { subformat: 'monolithicFlat' } };
    const last = await cutOff(at('v', 't.vmdk'), flat);
    expect(readdirSync(at('v'))).toEqual(['t-flat.vmdk', 't.vmdk']);
    const abort = new AbortController();
    const kept: unknown[] = [];
    const { error } = await convert(
      at('v', 't.vmdk'),
      { resume: true, ...flat },
      {
        signal: abort.signal,
        progress: ({ done }) => done > 0 && abort.abort(),
        checkpoint: { last, keep: (mark) => kept.push(mark) },
      },
    );
    expect(error).toMatchObject({ kind: 'cancelled' });
    // It had gone on, and not begun anew.
    expect(kept[0]).toMatchObject({ offset: (last as { offset: number }).offset });
    expect(readdirSync(at('v'))).toEqual([]);
  });

  it('says nothing of marks where it fails before it writes, and leaves the target', async () => {
    const last = await cutOff(at('w.raw'));
    const before = readFileSync(at('w.raw'));
    const kept: unknown[] = [];
    const locks = permissionsFor({ role: 'raw-data', writable: true });
    const user = await openFile({ path: source, writable: true, create: 'no', locks });
    const { error } = await convert(
      at('w.raw'),
      { resume: true },
      { checkpoint: { last, keep: (mark) => kept.push(mark) } },
    );
    await user.close();
    expect(error).toMatchObject({ kind: 'locked' });
    expect([kept, readFileSync(at('w.raw')).equals(before)]).toEqual([[], true]);
    const again = await convert(at('w.raw'), { resume: true }, { checkpoint: { last, keep() {} } });
    expect(again.result).toMatchObject({ 'resumed-from': (last as { offset: number }).offset });
    expect(readFileSync(at('w.raw')).equals(content)).toBe(true);
  });

  it('is none where the source is a device, which changes without a trace', async () => {
    const image = { path: '/dev/null', format: { children: new Map() } } as unknown as ImageNode;
    const { sourceFingerprints } = await import('../../src/engine/operations/resume.js');
    expect(await sourceFingerprints([image], { cwd: folder } as OperationContext)).toBeUndefined();
  });
});

it('an image that is refused for an option lets go of its backing file', async () => {
  const names = { base: at('leak-base.raw'), top: at('leak-top.qcow2') };
  writeFileSync(names.base, Buffer.alloc(MiB));
  await run('image-create', {
    ...{ filename: names.top, format: 'qcow2' },
    ...{ backing: names.base, 'backing-format': 'raw' },
  });
  const options = `driver=qcow2,file.filename=${names.top},bogus=1`;
  expect((await run('image-info', { image: { 'image-opts': options } })).error).toMatchObject({
    kind: 'invalid',
  });
  const compare = { a: { 'image-opts': options }, b: { filename: source, format: 'raw' } };
  expect((await run('image-compare', compare)).error).toMatchObject({ kind: 'invalid' });
  const open = readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return '';
    }
  });
  expect(open.filter((path) => path.includes('leak-'))).toEqual([]);
});
