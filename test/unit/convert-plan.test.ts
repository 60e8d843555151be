import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { runOperation } from '../../src/engine/index.js';
import type { OpenPolicy } from '../../src/engine/node/gate.js';
import { openFile } from '../../src/engine/storage/file.js';
import { permissionsFor } from '../../src/engine/storage/permissions.js';
import { tempDir } from '../support/reference.js';

const MiB = 1024 * 1024;
const folder = tempDir();
const at = (name: string) => join(folder, name);
beforeAll(() => {
  writeFileSync(at('source.raw'), Buffer.alloc(3 * MiB, 1));
  mkdirSync(at('in'));
});

interface Plan {
  ok: boolean;
  checks: { name: string; status: string; kind?: string; text?: string }[];
  required?: number;
  'fully-allocated'?: number;
  free?: number;
}
async function plan(params: Record<string, unknown>, policy: OpenPolicy = {}): Promise<Plan> {
  const result = await runOperation(
    'image-convert',
    {
      sources: [{ filename: at('source.raw'), format: 'raw' }],
      target: { filename: at('t.qcow2'), format: 'qcow2' },
      ...params,
      'dry-run': true,
    } as never,
    {
      ...{ cwd: folder, policy, signal: new AbortController().signal, setRate() {} },
      ...{ progress() {}, pace: () => undefined, output() {} },
    },
  );
  if (result.isErr()) throw result.error;
  return (result.value as { plan: Plan }).plan;
}
const failed = ({ checks }: Plan) =>
  checks.filter(({ status }) => status === 'failed').map(({ name, kind }) => [name, kind]);

describe('a dry run of a conversion', () => {
  it('tells sizes and free space, and makes nothing', async () => {
    const found = await plan({});
    expect(found).toMatchObject({ ok: true, required: expect.any(Number), free: expect.any(Number) });
    expect(found.required).toBeGreaterThan(3 * MiB);
    expect(found['fully-allocated']).toBeGreaterThanOrEqual(found.required!);
    expect(found.checks.map(({ name, status }) => `${name} ${status}`)).toEqual([
      ...['sources ok', 'format ok', 'options ok', 'backing ok', 'target ok', 'apart ok', 'space ok'],
    ]);
    expect(readdirSync(folder).sort()).toEqual(['in', 'source.raw']);
  });

  it('leaves an existing target as it is', async () => {
    writeFileSync(at('old.qcow2'), 'before');
    const target = { filename: at('old.qcow2'), format: 'qcow2' };
    expect(await plan({ target })).toMatchObject({ ok: true });
    expect(readFileSync(at('old.qcow2'), 'utf8')).toBe('before');
    const existing = await plan({ target: { filename: at('source.raw'), format: 'raw' }, create: false });
    expect(failed(existing)).toEqual([['target', 'locked']]);
  });

  it('names all that would fail', async () => {
    const missing = await plan({
      sources: [{ filename: at('none') }],
      target: { filename: at('nowhere/t'), format: 'bogus' },
    });
    expect(failed(missing)).toEqual([
      ['sources', 'not-found'],
      ['format', 'invalid'],
    ]);
    expect(missing.checks.find(({ name }) => name === 'target')).toMatchObject({
      status: 'skipped',
      text: "'format' is not well",
    });
    expect(failed(await plan({ target: { filename: at('nowhere/t.raw') } }))).toEqual([
      ['target', 'not-found'],
    ]);
    expect(failed(await plan({ options: { cluster_size: 3 } }))).toEqual([['options', 'invalid']]);
    const backing = { backing: at('none'), 'backing-format': 'raw' };
    expect(failed(await plan(backing))).toEqual([['backing', 'not-found']]);
    expect(failed(await plan({ target: { filename: at('source.raw') } }))).toEqual([['target', 'locked']]);
  });

  it('looks at what stands in the way of a target under a temporary name', async () => {
    const target = (name: string) => ({ atomic: true, target: { filename: at(name), format: 'raw' } });
    expect(await plan(target('atomic.raw'))).toMatchObject({ ok: true });
    writeFileSync(at('.left.raw.imgd-part'), 'left by a crash');
    expect(await plan(target('left.raw'))).toMatchObject({ ok: true });
    expect(readFileSync(at('.left.raw.imgd-part'), 'latin1')).toBe('left by a crash');
    symlinkSync(at('source.raw'), at('link.raw'));
    expect(failed(await plan(target('link.raw')))).toEqual([['target', 'unsupported']]);
    symlinkSync(at('source.raw'), at('.m.raw.imgd-part'));
    expect(failed(await plan(target('m.raw')))).toEqual([['target', 'unsupported']]);
    expect(failed(await plan(target('source.raw')))).toEqual([['target', 'locked']]);
    const locks = permissionsFor({ role: 'create', writable: true });
    const other = await openFile({ path: at('.left.raw.imgd-part'), writable: true, locks });
    expect(failed(await plan(target('left.raw')))).toEqual([['target', 'locked']]);
    await other.close();
  });

  it('says what the allowed folders refuse', async () => {
    const roots = [at('in')];
    expect(failed(await plan({}, { roots }))).toEqual([
      ['sources', 'denied'],
      ['target', 'denied'],
    ]);
  });

  it('says when the space is too small', async () => {
    const found = await plan({
      sources: [{ 'image-opts': 'driver=null-co,size=1P' }],
      target: { filename: at('big.raw') },
    });
    // Holes need nothing; what is preallocated does.
    expect(found.checks.at(-1)).toMatchObject({ name: 'space' });
    const full = await plan({
      sources: [{ 'image-opts': 'driver=null-co,size=1P' }],
      target: { filename: at('big.raw') },
      options: { preallocation: 'full' },
    });
    expect(failed(full)).toEqual([['space', 'no-space']]);
    expect(full.ok).toBe(false);
  });
});
