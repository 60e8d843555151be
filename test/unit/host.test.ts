import { spawnSync } from 'node:child_process';
import { closeSync, fstatSync, ftruncateSync, openSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { hostError } from '../../src/engine/error.js';
import { requestError } from '../../src/engine/storage/check.js';
import { allocateAligned, isAligned } from '../../src/engine/storage/host/aligned.js';
import { blockDeviceSize, directAlignment } from '../../src/engine/storage/host/device.js';
import { codeOf, errnoName, systemError } from '../../src/engine/storage/host/errno.js';
import { libc } from '../../src/engine/storage/host/libc.js';
import {
  changeSpace,
  copyFileRange,
  posixFallocate,
  seekData,
  seekHole,
} from '../../src/engine/storage/host/space.js';
import { tempDir } from '../support/reference.js';

const folder = tempDir();
const MB = 2 ** 20;
let count = 0;
const fresh = () => join(folder, `h${++count}`);

describe('errno names', () => {
  it('are those of Node, and known where Node has none', () => {
    expect(errnoName(28)).toBe('ENOSPC');
    expect(errnoName(95)).toBe('ENOTSUP');
    expect(codeOf({ code: 'ENOENT' })).toBe('ENOENT');
    expect(codeOf({ code: 'Unknown system error -122', errno: -122 })).toBe('EDQUOT');
    expect(codeOf(new Error('x'))).toBe('EIO');
    expect(hostError('Could not open', systemError('open', 13)).message).toBe(
      'Could not open: Permission denied',
    );
    expect(requestError(systemError('write', 122), 'f', 'write', 7)).toMatchObject({
      kind: 'no-space',
      message: 'Disk quota exceeded',
      context: { path: 'f', operation: 'write', offset: 7, errno: 'EDQUOT' },
    });
  });
});

describe.runIf(libc() !== undefined)('host calls', () => {
  it('find data and holes', () => {
    const fd = openSync(fresh(), 'w+');
    ftruncateSync(fd, 8 * MB);
    writeSync(fd, Buffer.alloc(MB, 1), 0, MB, 4 * MB);
    expect(seekData(fd, 0)).toBe(4 * MB);
    expect(seekHole(fd, 4 * MB)).toBe(5 * MB);
    expect(seekData(fd, 5 * MB)).toBe('end');
    expect(seekData(fd, 100 * MB)).toBe('end');
    closeSync(fd);
    expect(seekData(fd, 0)).toBe('unknown');
  });

  it('take offsets beyond 32 bits', () => {
    const fd = openSync(fresh(), 'w+');
    ftruncateSync(fd, 2 ** 33);
    writeSync(fd, Buffer.alloc(4096, 1), 0, 4096, 2 ** 32);
    expect(seekData(fd, 5)).toBe(2 ** 32);
    closeSync(fd);
  });

  it('reserve, allocate, punch', async ({ skip }) => {
    const path = fresh();
    const fd = openSync(path, 'w+');
    skip(!(await changeSpace(fd, 'reserve', { at: 0, length: MB })), 'not on this filesystem');
    expect(fstatSync(fd).size).toBe(0);
    expect(fstatSync(fd).blocks * 512).toBeGreaterThanOrEqual(MB);
    expect(await changeSpace(fd, 'allocate', { at: 0, length: 2 * MB })).toBe(true);
    expect(fstatSync(fd).size).toBe(2 * MB);
    expect(await changeSpace(fd, 'punch', { at: 0, length: 2 * MB })).toBe(true);
    expect(statSync(path).blocks * 512).toBeLessThan(MB);
    expect(await posixFallocate(fd, { at: 0, length: MB })).toBe(true);
    expect(statSync(path).blocks * 512).toBeGreaterThanOrEqual(MB);
    await expect(changeSpace(fd, 'allocate', { at: 0, length: 2 ** 50 })).rejects.toMatchObject({
      code: expect.stringMatching(/^(ENOSPC|EFBIG)$/),
    });
    closeSync(fd);
    await expect(changeSpace(fd, 'allocate', { at: 0, length: 10 })).rejects.toMatchObject({ code: 'EBADF' });
  });

  it('copy between files', async () => {
    const [a, b] = [fresh(), fresh()];
    writeFileSync(a, Buffer.alloc(10_000, 7));
    const from = openSync(a, 'r');
    const to = openSync(b, 'w+');
    expect(await copyFileRange({ fd: from, at: 100 }, { fd: to, at: 5 }, 20_000)).toBe(9900);
    expect(fstatSync(to).size).toBe(9905);
    expect(await copyFileRange({ fd: from, at: 20_000 }, { fd: to, at: 5 }, 10)).toBe(0);
    closeSync(from);
    closeSync(to);
  });

  it('tell no size of what is no block device', () => {
    const fd = openSync(fresh(), 'w+');
    expect(blockDeviceSize(fd)).toBeUndefined();
    const alignment = directAlignment(fd);
    if (alignment) expect(4096 % alignment.offset).toBe(0);
    closeSync(fd);
  });

  it('align memory', () => {
    const buffer = allocateAligned(10_000, 4096);
    expect(buffer.length).toBe(10_000);
    expect(isAligned(buffer, 4096)).toBe(true);
    expect(isAligned(buffer.subarray(1), 2)).toBe(false);
    expect(isAligned(buffer.subarray(512), 512)).toBe(true);
  });
});

describe('without host calls', () => {
  it('files do what they can, by writing zeros and without holes and locks', { timeout: 60_000 }, () => {
    // The storage tests again, in a process that has no koffi; those that measure space are not among them.
    const done = spawnSync(
      process.execPath,
      [
        join(import.meta.dirname, '../../node_modules/vitest/vitest.mjs'),
        'run',
        'test/unit/storage-file.test.ts',
        '-t',
        'agrees with a model|keeps unaligned|QEMU words|descriptor goes',
      ],
      {
        cwd: join(import.meta.dirname, '../..'),
        encoding: 'utf8',
        env: { ...process.env, IMGD_NO_HOST_CALLS: '1', NO_COLOR: '1' },
      },
    );
    expect(done.stdout + done.stderr).toMatch(/Tests\s+1[0-9] passed/);
    expect(done.status).toBe(0);
  });
});
