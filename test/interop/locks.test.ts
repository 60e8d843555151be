/** Locks against the reference, both ways: whoever comes second must meet the same answer as among two of the reference. */
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { afterEach, expect, it } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { type FileStorage, openFile } from '../../src/engine/storage/file.js';
import { type FileRole, permissionsFor } from '../../src/engine/storage/permissions.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';

type Format = 'raw' | 'qcow2';
type Mode = 'read' | 'write' | 'force-share';
const FORMATS: readonly Format[] = ['raw', 'qcow2'];
const MODES: readonly Mode[] = ['read', 'write', 'force-share'];
const ROLE: Readonly<Record<Format, FileRole>> = { raw: 'raw-data', qcow2: 'format-metadata' };

describeInterop('locks', () => {
  const folder = tempDir();
  const children: ChildProcess[] = [];
  let count = 0;

  afterEach(async () => {
    await Promise.all(children.splice(0).map(stop));
  });

  function image(format: Format): string {
    const path = join(folder, `l${++count}.${format}`);
    expect(run(reference.qemuImg!, ['create', '-q', '-f', format, path, '1M']).status).toBe(0);
    return path;
  }

  function flags(mode: Mode): string[] {
    return { read: ['-r'], write: [], 'force-share': ['-r', '-U'] }[mode];
  }

  /** A qemu-io that keeps the image open; resolves when it has it. */
  function hold(path: string, format: Format, mode: Mode): Promise<ChildProcess> {
    const child = spawn(reference.qemuIo!, [...flags(mode), '-f', format, path], { stdio: 'pipe' });
    children.push(child);
    return new Promise((resolve, reject) => {
      let text = '';
      child.stdout.on('data', (chunk: Buffer) => {
        text += chunk.toString();
        if (text.includes('read 512/512')) resolve(child);
      });
      child.on('exit', (code) => reject(new Error(`qemu-io ended with ${code}: ${text}`)));
      child.stdin.write('read 0 512\n');
    });
  }

  function stop(child: ChildProcess): Promise<void> {
    return new Promise((resolve) => {
      if (child.exitCode !== null) return resolve();
      child.removeAllListeners('exit');
      child.on('exit', () => resolve());
      child.stdin?.end('quit\n');
    });
  }

  function ours(path: string, format: Format, mode: Mode): Promise<FileStorage> {
    const writable = mode === 'write';
    const locks = permissionsFor({ role: ROLE[format], writable, forceShare: mode === 'force-share' });
    return openFile({ path, writable, locks });
  }

  /** Lines after the program's own prefix; empty where it was let in. */
  async function attempt(
    who: 'ours' | 'reference',
    path: string,
    format: Format,
    mode: Mode,
  ): Promise<string> {
    if (who === 'reference') {
      const done = run(reference.qemuIo!, [...flags(mode), '-f', format, '-c', 'read 0 512', path]);
      return done.stderr.trim().replace(`qemu-io: can't open device ${path}: `, '');
    }
    try {
      const file = await ours(path, format, mode);
      await file.close();
      return '';
    } catch (error) {
      if (!(error instanceof ImageError)) throw error;
      return `${error.message}\n${error.context.hint}`;
    }
  }

  for (const format of FORMATS) {
    for (const held of MODES) {
      it(`${format} held for ${held} gives ours and the reference the same answers, whoever holds it`, async () => {
        const path = image(format);
        const answers = async (): Promise<Record<string, string>> => {
          const all: Record<string, string> = {};
          for (const mode of MODES) {
            for (const who of ['reference', 'ours'] as const) {
              all[`${mode} by ${who}`] = await attempt(who, path, format, mode);
            }
          }
          return all;
        };
        const child = await hold(path, format, held);
        const againstReference = await answers();
        await stop(child);
        const file = await ours(path, format, held);
        const againstOurs = await answers();
        await file.close();
        expect(againstOurs).toEqual(againstReference);
        for (const mode of MODES) {
          expect(againstReference[`${mode} by ours`]).toBe(againstReference[`${mode} by reference`]);
        }
      });
    }
  }

  it('names the reference as holder of what we do not get', async () => {
    const path = image('qcow2');
    const child = await hold(path, 'qcow2', 'write');
    await expect(ours(path, 'qcow2', 'read')).rejects.toMatchObject({
      kind: 'locked',
      message: 'Failed to get shared "write" lock',
      context: {
        hint: `Is another process using the image [${path}]?`,
        holder: { pid: child.pid, command: 'qemu-io' },
      },
    });
  });

  it('makes qemu-img fail with its own words while we write, and lets -U and a later one in', async () => {
    const path = image('qcow2');
    const file = await ours(path, 'qcow2', 'write');
    for (const operation of ['info', 'check', 'map']) {
      const refused = run(reference.qemuImg!, [operation, path]);
      expect(refused.status).toBe(1);
      expect(refused.stderr).toBe(
        `qemu-img: Could not open '${path}': Failed to get shared "write" lock\n` +
          `Is another process using the image [${path}]?\n`,
      );
      expect(run(reference.qemuImg!, [operation, '-U', path]).status).toBe(0);
    }
    await file.close();
    expect(run(reference.qemuImg!, ['info', path]).status).toBe(0);
  });

  it('keeps qemu-img from creating anew what we read, and from resizing what we hold', async () => {
    const path = image('qcow2');
    const file = await ours(path, 'qcow2', 'read');
    for (const args of [
      ['create', '-f', 'qcow2', path, '1M'],
      ['resize', path, '2M'],
      ['snapshot', '-c', 'x', path],
    ]) {
      const refused = run(reference.qemuImg!, args);
      expect(refused.status, args[0]).toBe(1);
      expect(refused.stderr).toContain('Failed to get "write" lock\n');
    }
    await file.close();
    const data = image('raw');
    const writer = await ours(data, 'raw', 'write');
    // Two may write one raw image: the format keeps nothing that could break.
    expect(run(reference.qemuIo!, ['-f', 'raw', '-c', 'write 0 512', data]).status).toBe(0);
    await writer.close();
  });

  it('creates as the reference does: not over what another has open', async () => {
    const path = image('qcow2');
    await hold(path, 'qcow2', 'read');
    await expect(
      openFile({ path, writable: true, create: 'truncate', locks: permissionsFor({ role: 'create' }) }),
    ).rejects.toMatchObject({ message: 'Failed to get "write" lock' });
    expect(run(reference.qemuImg!, ['info', path]).status).toBe(0);
  });
});
