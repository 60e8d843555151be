import fs, {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { parseConfig } from '../../src/daemon/config.js';
import { lastingDigest } from '../../src/daemon/jobs/digest.js';
import { Journal, type JournalEntry } from '../../src/daemon/jobs/journal.js';
import { encodeRecord, JournalFile, MAX_BYTES } from '../../src/daemon/jobs/journal-file.js';
import { withoutSecrets } from '../../src/daemon/jobs/journal-params.js';
import type { Log } from '../../src/daemon/log.js';
import { tempDir } from '../support/reference.js';

const folder = tempDir();
let next = 1;

function opened(path: string) {
  const said: string[] = [];
  const note = (fields: { reason?: string }, text?: string) => said.push(`${text}: ${fields.reason ?? ''}`);
  const log = { warn: note, error: note, info: note } as unknown as Log;
  return { ...Journal.open(path, log), said };
}

const job = (id: string, more: Partial<JournalEntry> = {}): JournalEntry => ({
  ...{ id, operation: 'image-convert', params: {}, digest: `of ${id}`, owner: 'unix' },
  ...{ autoDismiss: true, created: Date.now(), ...more },
});
const ids = (entries: readonly JournalEntry[]) => entries.map(({ id }) => id);
const fresh = () => join(folder, `journal-${next++}`);

describe('the journal', () => {
  it('knows which jobs were cut off, and whether they had begun', async () => {
    const path = fresh();
    const { journal } = opened(path);
    for (const id of ['a', 'b', 'c']) journal!.created(job(id));
    journal!.started('a', 1);
    journal!.started('b', 2);
    journal!.ended('a');
    await journal!.close();
    const again = opened(path);
    expect(again.cutOff).toMatchObject([
      { id: 'b', started: 2, interrupted: expect.any(Number) },
      { id: 'c', interrupted: expect.any(Number) },
    ]);
    expect(again.cutOff[1]).not.toHaveProperty('started');
    expect(statSync(path).mode & 0o777).toBe(0o600);
    // They stay until they are dismissed, with the time at which it was found.
    again.journal!.ended('b');
    await again.journal!.close();
    const third = opened(path);
    expect(third.cutOff).toEqual([again.cutOff[1]]);
    expect(third.said).toEqual([]);
  });

  it('writes nothing after it was closed, where its descriptor may be another file', async () => {
    const path = fresh();
    const { journal } = opened(path);
    journal!.created(job('a'));
    await journal!.close();
    const before = readFileSync(path);
    const other = fresh();
    // Takes the number that is free.
    const fd = openSync(other, 'w');
    journal!.created(job('b'));
    journal!.mark('a', 1);
    closeSync(fd);
    expect([readFileSync(path), readFileSync(other).length]).toEqual([before, 0]);
  });

  it('tolerates a torn tail at every length of it', async () => {
    const path = fresh();
    const { journal } = opened(path);
    journal!.created(job('whole'));
    const before = statSync(path).size;
    journal!.created(job('torn'));
    await journal!.close();
    const bytes = readFileSync(path);
    for (let length = before; length < bytes.length; length++) {
      const copy = fresh();
      writeFileSync(copy, bytes.subarray(0, length));
      const { cutOff, said, journal } = opened(copy);
      expect([ids(cutOff), said.length]).toEqual([['whole'], 1]);
      await journal!.close();
    }
    const zeros = fresh();
    writeFileSync(zeros, Buffer.concat([bytes.subarray(0, before), Buffer.alloc(5000)]));
    expect(ids(opened(zeros).cutOff)).toEqual(['whole']);
  });

  it.each([
    ['damage in the middle', (bytes: Buffer) => bytes.fill(0x21, 60, 62)],
    ['another file', () => Buffer.from('hello\nworld\n')],
    ['a later version', () => Buffer.from(encodeRecord({ is: 'journal', version: 2 }))],
  ])('moves a file aside that it cannot read: %s', async (_, change) => {
    const path = fresh();
    const { journal } = opened(path);
    journal!.created(job('a'));
    journal!.created(job('b'));
    await journal!.close();
    const damaged = change(readFileSync(path));
    writeFileSync(path, damaged);
    const again = opened(path);
    expect(again.cutOff).toEqual([]);
    expect(again.said).toEqual([expect.stringContaining('journal damaged: a new one is begun')]);
    const aside = readdirSync(folder).filter((name) => name.startsWith(`${path.split('/').at(-1)}.damaged-`));
    expect(aside).toHaveLength(1);
    expect(readFileSync(join(folder, aside[0]!))).toEqual(damaged);
    again.journal!.created(job('b'));
    await again.journal!.close();
    expect(ids(opened(path).cutOff)).toEqual(['b']);
  });

  it('is kept by one daemon at a time, and by none where that cannot be', async () => {
    const path = fresh();
    const first = opened(path);
    first.journal!.created(job('a'));
    expect(opened(path)).toMatchObject({
      ...{ journal: undefined, cutOff: [] },
      said: [expect.stringContaining('in use by another imgd')],
    });
    await first.journal!.close();
    expect(opened(folder).said).toEqual([expect.stringContaining('cannot open')]);
    expect(opened('/proc/nowhere/journal').said).toEqual([expect.stringContaining('no journal is kept')]);
  });

  it('compacts itself, and still says the same', async () => {
    const path = fresh();
    const { journal } = opened(path);
    journal!.created(job('kept', { mark: { at: 1 } }));
    for (let n = 0; n < 3000; n++) {
      journal!.created(job(`job-${n}`));
      journal!.started(`job-${n}`, n);
      journal!.ended(`job-${n}`);
      if (n % 100 === 0) journal!.mark('kept', { at: n });
    }
    expect(statSync(path).size).toBeLessThan(300_000);
    await journal!.close();
    expect(existsSync(`${path}.new`)).toBe(false);
    expect(opened(path).cutOff).toMatchObject([{ id: 'kept', mark: { at: 2900 } }]);
  });

  it('makes up for what it could not write', async () => {
    const path = fresh();
    const { journal, said } = opened(path);
    const failing = vi.spyOn(fs, 'writeSync').mockImplementation(() => {
      throw Object.assign(new Error('no space'), { code: 'ENOSPC' });
    });
    syncBuiltinESMExports();
    try {
      journal!.created(job('a'));
      journal!.created(job('b'));
    } finally {
      failing.mockRestore();
      syncBuiltinESMExports();
    }
    expect(said).toEqual(['the journal cannot be written: no space']);
    journal!.ended('b');
    await journal!.close();
    expect(ids(opened(path).cutOff)).toEqual(['a']);
  });

  it('finds how far a job with the same parameters had come', async () => {
    const path = fresh();
    const { journal } = opened(path);
    journal!.created(job('a', { digest: 'same' }));
    journal!.mark('a', { offset: 5 });
    expect(journal!.markOf('same')).toBeUndefined();
    await journal!.close();
    expect(opened(path).journal!.markOf('same')).toEqual({ offset: 5 });
  });
});

describe('a mark', () => {
  it('outlives an attempt to go on that failed before it wrote, under the same id or another', async () => {
    const path = fresh();
    const { journal } = opened(path);
    journal!.created(job('a', { digest: 'same' }));
    journal!.mark('a', { offset: 5 });
    await journal!.close();
    for (const id of ['a', 'b']) {
      const { journal: again } = opened(path);
      again!.created(job(id, { digest: 'same', mark: { offset: 5 } }));
      again!.untouched(id, 'locked');
      expect(again!.markOf('same')).toEqual({ offset: 5 });
      await again!.close();
    }
    const last = opened(path);
    expect(ids(last.cutOff)).toEqual(['a']);
    last.journal!.created(job('a', { digest: 'same', mark: { offset: 5 } }));
    last.journal!.ended('a', 'no-space');
    expect(last.journal!.markOf('same')).toBeUndefined();
    await last.journal!.close();
  });

  it('of a file for each of very many sources is not kept', () => {
    const { journal } = opened(fresh());
    journal!.created(job('a'));
    journal!.mark('a', { sources: Array.from({ length: 1000 }, () => 'x'.repeat(60)) });
    expect(statSync(join(folder, `journal-${next - 1}`)).size).toBeLessThan(2000);
  });
});

describe('the length of the journal', () => {
  it('stays within what the next daemon reads, however many jobs there are', async () => {
    const path = fresh();
    const { journal } = opened(path);
    let count = 0;
    for (; !journal!.full && count < 1_000_000; count++) {
      const params = { target: { filename: `/${'x'.repeat(4000)}` } };
      journal!.created(job(`job-${count}`, { params, owner: 'uid 1000, pid 77' }));
      journal!.started(`job-${count}`, count);
    }
    expect(count).toBeGreaterThan(10_000);
    expect(count).toBeLessThan(100_000);
    await journal!.close();
    expect(statSync(path).size).toBeLessThan(MAX_BYTES);
    const again = opened(path);
    expect(again.said.some((line) => line.includes('damaged'))).toBe(false);
    expect(again.cutOff.length).toBeGreaterThan(0);
    await again.journal!.close();
  });
});

describe('a disk that loses what was written', () => {
  it('is told of, and made up for in a new file', async () => {
    const path = fresh();
    const { file } = JournalFile.open(path, () => undefined);
    const lost: unknown[] = [];
    file.onLost = (error) => lost.push(error);
    const failing = vi.spyOn(fs, 'fdatasync').mockImplementation((_, done) => {
      setImmediate(() => done(Object.assign(new Error('EIO'), { code: 'EIO' })));
    });
    syncBuiltinESMExports();
    try {
      file.append({ is: 'job' });
      await vi.waitFor(() => expect(lost).toMatchObject([{ code: 'EIO' }]));
    } finally {
      failing.mockRestore();
      syncBuiltinESMExports();
    }
    await file.close();
  });

  it('leaves no descriptor behind where opening fails', () => {
    const count = () => readdirSync('/proc/self/fd').length;
    const path = fresh();
    writeFileSync(path, '');
    const before = count();
    const open = () =>
      JournalFile.open(path, () => {
        throw new TypeError('a bug');
      });
    expect(open).toThrow(/cannot open/);
    expect(count()).toBe(before);
  });
});

describe('the place of the journal', () => {
  const placed = (argv: string[], env: Record<string, string>, uid: number) => {
    const invocation = parseConfig(argv, { XDG_RUNTIME_DIR: '/r', ...env }, uid);
    return invocation.kind === 'run' ? invocation.config.journal : invocation.kind;
  };
  it('is where state belongs, beside a socket that was given, or where one says', () => {
    expect(placed([], {}, 0)).toBe('/var/lib/imgd/journal');
    expect(placed([], { XDG_STATE_HOME: '/s', HOME: '/h' }, 1)).toBe('/s/imgd/journal');
    expect(placed([], { HOME: '/h' }, 1)).toBe('/h/.local/state/imgd/journal');
    expect(placed([], {}, 1)).toBeUndefined();
    expect(placed(['--socket', '/a/s'], { HOME: '/h' }, 0)).toBe('/a/s.journal');
    expect(placed(['--socket', '/a/s', '--journal', '/j'], {}, 0)).toBe('/j');
    expect(placed([], { IMGD_JOURNAL: 'none' }, 0)).toBeUndefined();
  });
});

describe('what is kept of parameters', () => {
  it('holds nothing that may be secret', () => {
    const kept = withoutSecrets({
      sources: [
        { filename: 'json:{"driver":"http","password":"hush"}' },
        { filename: 'https://me:hush@host/disk' },
        { 'image-opts': 'driver=ssh,password=hush' },
      ],
      target: { filename: '/a/b.qcow2' },
      options: { cluster_size: 65536, 'encrypt.key-secret': 'hush' },
      objects: [{ 'qom-type': 'secret', id: 's', data: 'hush' }],
    });
    expect(JSON.stringify(kept)).not.toContain('hush');
    expect(kept).toMatchObject({ target: { filename: '/a/b.qcow2' }, options: { cluster_size: 65536 } });
  });

  it('is in a hash that a resumption has in common', () => {
    const params = { target: { filename: 'b' }, objects: [{ data: 'hush' }] };
    const digest = lastingDigest('image-convert', params, '/');
    expect(lastingDigest('image-convert', { target: { filename: 'b' }, resume: true }, '/')).toBe(digest);
    expect(lastingDigest('image-convert', { target: { filename: 'c' } }, '/')).not.toBe(digest);
    // Telling what a conversion would come to is other work: its end is not that of the conversion.
    expect(lastingDigest('image-convert', { ...params, 'dry-run': true }, '/')).not.toBe(digest);
    expect(lastingDigest('image-convert', { ...params, 'dry-run': false }, '/')).toBe(digest);
  });
});
