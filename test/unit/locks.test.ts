import { closeSync, linkSync, openSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openFile, reopenFile } from '../../src/engine/storage/file.js';
import { byteLockedElsewhere, locksAvailable, setByteLock } from '../../src/engine/storage/host/locks.js';
import { FileLocks } from '../../src/engine/storage/locks.js';
import {
  ALL_PERMISSIONS,
  CONSISTENT_READ,
  type FileUse,
  NO_PERMISSIONS,
  permissionsFor,
  RESIZE,
  WRITE,
  WRITE_UNCHANGED,
} from '../../src/engine/storage/permissions.js';
import { tempDir } from '../support/reference.js';

const folder = tempDir();
let count = 0;

function image(): string {
  const path = join(folder, `image${++count}`);
  writeFileSync(path, Buffer.alloc(4096));
  return path;
}

/** Bytes of the protocol that other descriptors than `fd` have locked. */
function lockedBytes(fd: number): number[] {
  const bytes = [100, 101, 102, 103, 104, 200, 201, 202, 203, 204];
  return bytes.filter((at) => byteLockedElsewhere(fd, at));
}

const available = (() => {
  const fd = openSync(image(), 'r+');
  const answer = locksAvailable(fd);
  closeSync(fd);
  return answer;
})();

describe('permissionsFor', () => {
  const unchanging = CONSISTENT_READ | WRITE_UNCHANGED;
  const cases: [string, FileUse, number, number][] = [
    ['reading qcow2', { role: 'format-metadata' }, CONSISTENT_READ, unchanging],
    ['info of qcow2', { role: 'format-metadata', metadataOnly: true }, NO_PERMISSIONS, unchanging],
    [
      'writing qcow2',
      { role: 'format-metadata', writable: true },
      CONSISTENT_READ | WRITE | RESIZE,
      unchanging,
    ],
    ['reading qcow2 -U', { role: 'format-metadata', forceShare: true }, CONSISTENT_READ, ALL_PERMISSIONS],
    [
      'info -U',
      { role: 'format-metadata', forceShare: true, metadataOnly: true },
      NO_PERMISSIONS,
      ALL_PERMISSIONS,
    ],
    ['reading raw', { role: 'raw-data' }, CONSISTENT_READ, ALL_PERMISSIONS],
    ['converting raw', { role: 'raw-data', stable: true }, CONSISTENT_READ, unchanging],
    ['writing raw', { role: 'raw-data', writable: true }, CONSISTENT_READ | WRITE, ALL_PERMISSIONS],
    [
      'resizing raw',
      { role: 'raw-data', writable: true, resize: true },
      CONSISTENT_READ | WRITE | RESIZE,
      ALL_PERMISSIONS,
    ],
    ['reading a data file', { role: 'data-file' }, CONSISTENT_READ, ALL_PERMISSIONS & ~RESIZE],
    ['creating', { role: 'create', writable: true }, WRITE | RESIZE, ALL_PERMISSIONS & ~RESIZE],
  ];
  it.each(cases)('%s', (_, use, uses, shares) => {
    expect(permissionsFor(use)).toEqual({ uses, shares });
  });

  it('refuses to write with force-share', () => {
    expect(() => permissionsFor({ role: 'raw-data', writable: true, forceShare: true })).toThrow(
      'force-share=on can only be used with read-only images',
    );
  });
});

describe.runIf(available)('FileLocks', () => {
  it('locks a byte for each permission used and for each not shared', async () => {
    const path = image();
    const probe = openSync(path, 'r+');
    const file = await openFile({
      path,
      writable: true,
      locks: permissionsFor({ role: 'format-metadata', writable: true }),
    });
    expect(lockedBytes(probe)).toEqual([100, 101, 103, 201, 203]);
    file.locks!.setPermissions(permissionsFor({ role: 'format-metadata' }));
    expect(lockedBytes(probe)).toEqual([100, 201, 203]);
    file.locks!.setPermissions({ uses: NO_PERMISSIONS, shares: ALL_PERMISSIONS });
    expect(lockedBytes(probe)).toEqual([]);
    file.locks!.setPermissions(permissionsFor({ role: 'raw-data' }));
    expect(lockedBytes(probe)).toEqual([100]);
    await file.close();
    expect(lockedBytes(probe)).toEqual([]);
    closeSync(probe);
  });

  it('says in QEMU words what is not to be had, and who has it', async () => {
    const path = image();
    const writer = await openFile({
      path,
      writable: true,
      locks: permissionsFor({ role: 'format-metadata', writable: true }),
    });
    await expect(
      openFile({
        path,
        filename: 'a.img',
        writable: false,
        locks: permissionsFor({ role: 'format-metadata' }),
      }),
    ).rejects.toMatchObject({
      kind: 'locked',
      message: 'Failed to get shared "write" lock',
      context: {
        path: 'a.img',
        hint: 'Is another process using the image [a.img]?',
        check: 'shared write',
        holder: { pid: process.pid, command: expect.any(String) },
      },
    });
    await expect(
      openFile({ path, writable: true, locks: permissionsFor({ role: 'raw-data', writable: true }) }),
    ).rejects.toMatchObject({ kind: 'locked', message: 'Failed to get "write" lock' });
    const shared = await openFile({
      path,
      writable: false,
      locks: permissionsFor({ role: 'raw-data', forceShare: true }),
    });
    await shared.close();
    await writer.close();
  });

  it('checks uses before shares, each in the order of the bytes', async () => {
    const path = image();
    const other = openSync(path, 'r+');
    const fd = openSync(path, 'r+');
    const attempt = (...bytes: number[]) => {
      for (const at of bytes) setByteLock(other, at, 'read');
      try {
        FileLocks.acquire(fd, 'x', permissionsFor({ role: 'format-metadata', writable: true }));
        return 'taken';
      } catch (error) {
        return (error as Error).message;
      } finally {
        for (const at of bytes) setByteLock(other, at, 'none');
      }
    };
    expect(attempt(101, 203)).toBe('Failed to get "resize" lock');
    expect(attempt(101, 103)).toBe('Failed to get shared "write" lock');
    expect(attempt(103)).toBe('Failed to get shared "resize" lock');
    expect(attempt(200, 201)).toBe('Failed to get "consistent read" lock');
    expect(attempt(102, 104, 202, 204)).toBe('taken');
    closeSync(fd);
    closeSync(other);
  });

  it('names the byte where a lock outside the protocol is in the way', () => {
    const path = image();
    const other = openSync(path, 'r+');
    setByteLock(other, 201, 'write');
    const fd = openSync(path, 'r+');
    let thrown: unknown;
    try {
      FileLocks.acquire(fd, 'x', permissionsFor({ role: 'format-metadata' }));
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toMatchObject({ kind: 'locked', message: 'Failed to lock byte 201' });
    expect((thrown as { context: { hint?: string } }).context.hint).toBeUndefined();
    expect(lockedBytes(other)).toEqual([]);
    closeSync(fd);
    closeSync(other);
  });

  it('keeps what it had where an upgrade fails', () => {
    const path = image();
    const [probe, a, b] = [openSync(path, 'r+'), openSync(path, 'r+'), openSync(path, 'r+')];
    const reader = FileLocks.acquire(a, 'x', permissionsFor({ role: 'raw-data' }));
    FileLocks.acquire(b, 'x', permissionsFor({ role: 'format-metadata' }));
    expect(() => reader.setPermissions(permissionsFor({ role: 'raw-data', writable: true }))).toThrow(
      'Failed to get "write" lock',
    );
    expect(reader.permissions).toEqual(permissionsFor({ role: 'raw-data' }));
    closeSync(b);
    expect(lockedBytes(probe)).toEqual([100]);
    reader.setPermissions(permissionsFor({ role: 'raw-data', writable: true }));
    expect(lockedBytes(probe)).toEqual([100, 101]);
    closeSync(a);
    closeSync(probe);
  });

  it('meets itself behind another name of the file', async () => {
    const path = image();
    linkSync(path, `${path}-hard`);
    symlinkSync(path, `${path}-soft`);
    const locks = permissionsFor({ role: 'format-metadata', writable: true });
    const file = await openFile({ path, writable: true, locks });
    for (const name of [`${path}-hard`, `${path}-soft`]) {
      await expect(openFile({ path: name, writable: true, locks })).rejects.toMatchObject({ kind: 'locked' });
    }
    await file.close();
  });

  it('empties a file only after its locks are taken', async () => {
    const path = image();
    const locks = permissionsFor({ role: 'format-metadata' });
    const reader = await openFile({ path, writable: false, locks });
    await expect(
      openFile({ path, writable: true, create: 'truncate', locks: permissionsFor({ role: 'create' }) }),
    ).rejects.toMatchObject({ message: 'Failed to get "write" lock' });
    expect(statSync(path).size).toBe(4096);
    await reader.close();
  });

  it('moves along when a file is opened again for writing, and letting nobody in between', async () => {
    const path = image();
    const probe = openSync(path, 'r+');
    const use = { role: 'format-metadata' } as const;
    const reader = await openFile({ path, writable: false, locks: permissionsFor(use) });
    const writing = permissionsFor({ ...use, writable: true });
    const writer = await reopenFile(reader, { path, writable: true, locks: writing });
    expect(lockedBytes(probe)).toEqual([100, 101, 103, 201, 203]);
    await writer.write(0, Uint8Array.of(1));
    const again = await reopenFile(writer, { path, writable: false, locks: permissionsFor(use) });
    expect(lockedBytes(probe)).toEqual([100, 201, 203]);
    // Where it is not to be had, all is as before.
    setByteLock(probe, 200 + 1, 'read');
    await expect(reopenFile(again, { path, writable: true, locks: writing })).rejects.toMatchObject({
      message: 'Failed to get "write" lock',
    });
    await expect(
      reopenFile(again, { path: `${path}-gone`, writable: false, locks: permissionsFor(use) }),
    ).rejects.toMatchObject({ kind: 'not-found' });
    expect(lockedBytes(probe)).toEqual([100, 201, 203]);
    await again.read(0, new Uint8Array(1));
    await again.close();
    closeSync(probe);
  });
});
