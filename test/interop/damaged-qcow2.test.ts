/** Damaged qcow2 images in the reference and in ours: the same words and exit codes, and nothing is made worse. */
import {
  closeSync,
  copyFileSync,
  existsSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  statSync,
} from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { ours, theirs } from '../golden/harness.js';
import { describeInterop, tempDir } from '../support/reference.js';
import { shown } from './command-differences.js';
import { damage, makeImages } from './damaged-images.js';
import { isMeant, withoutClosing } from './damaged-known.js';

/** More of them: IMGD_DAMAGED=2000; others: IMGD_DAMAGED_SEED=5000. */
const CASES = Number(process.env.IMGD_DAMAGED ?? 30);
const FIRST_SEED = Number(process.env.IMGD_DAMAGED_SEED ?? 1);
const NAME = 'd.qcow2';

interface Check {
  readonly 'check-errors': number;
  readonly corruptions?: number;
}

/** How much of two files is compared: what is damaged is small, but may make a file of any size. */
const COMPARED = 16 << 20;

function head(path: string): Buffer {
  const fd = openSync(path, 'r');
  try {
    const bytes = Buffer.alloc(Math.min(COMPARED, fstatSync(fd).size));
    readSync(fd, bytes, 0, bytes.length, 0);
    return bytes;
  } finally {
    closeSync(fd);
  }
}

function same(one: string, other: string): boolean {
  return statSync(one).size === statSync(other).size && head(one).equals(head(other));
}

interface Found {
  /** Leaks left out; undefined where the reference cannot look. */
  readonly errors: number | undefined;
  /** Something in use counts as free: whoever needs a place may take it. */
  readonly fallow: boolean;
}

/** What the reference's check finds wrong. */
function found(folder: string): Found {
  const { stdout, stderr } = theirs(['check', '-f', 'qcow2', '--output=json', NAME], folder);
  const fallow = /refcount=0 reference=[1-9]/.test(stderr);
  if (stdout === '') return { errors: undefined, fallow };
  const { 'check-errors': failed, corruptions } = JSON.parse(stdout) as Check;
  return { errors: failed + (corruptions ?? 0), fallow };
}

describeInterop('damaged qcow2 images', () => {
  const folder = tempDir();
  const sound = join(folder, 'sound');
  mkdirSync(sound);
  makeImages(sound);

  const attempt = (program: typeof ours, line: string) => {
    const place = join(folder, program === ours ? 'ours' : 'theirs');
    rmSync(place, { recursive: true, force: true });
    mkdirSync(place);
    for (const name of readdirSync(sound)) copyFileSync(join(sound, name), join(place, name));
    const result = program(line.split(' '), place);
    const out = join(place, 'out.raw');
    return {
      place,
      said: shown(result),
      text: withoutClosing(shown(result)),
      status: result.status,
      changed: !same(join(place, NAME), join(sound, NAME)),
      out: result.status === 0 && existsSync(out) ? out : undefined,
    };
  };

  for (let seed = FIRST_SEED; seed < FIRST_SEED + CASES; seed++) {
    it(`seed ${seed}`, { timeout: 60_000 }, () => {
      const { kind, damage: what, line } = damage(seed, sound, NAME);
      const title = `${kind}, ${what}: ${line}`;
      const [a, b] = [attempt(ours, line), attempt(theirs, line)];
      if (!isMeant(title, a.said, b.said)) expect(a.text, title).toBe(b.text);
      // A snapshot has the size it had; the reference gives it that of the guest today.
      const itsOwnSize = line.includes('snapshot.name') && /size: /.test(what);
      if (a.out !== undefined && b.out !== undefined && !itsOwnSize)
        expect(same(a.out, b.out), `${title}: content`).toBe(true);
      if (!a.changed) return;
      const [before, left, right] = [found(sound), found(a.place), found(b.place)];
      if (right.errors === undefined || (a.status !== 0 && b.status === 0) || before.fallow) return;
      const most = Math.max(right.errors, before.errors ?? 0);
      expect(left.errors, `${title}: errors after`).toBeLessThanOrEqual(most);
    });
  }
});
