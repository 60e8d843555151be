/** Damaged qcow2 images in the reference and in ours: the same words and exit codes, and nothing is made worse. */
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { ours, theirs } from '../golden/harness.js';
import { describeInterop, tempDir } from '../support/reference.js';
import { shown } from './command-differences.js';
import { damage, makeImages } from './damaged-images.js';
import { isMeant } from './damaged-known.js';

/** More of them: IMGD_DAMAGED=2000; others: IMGD_DAMAGED_SEED=5000. */
const CASES = Number(process.env.IMGD_DAMAGED ?? 30);
const FIRST_SEED = Number(process.env.IMGD_DAMAGED_SEED ?? 1);
const NAME = 'd.qcow2';

interface Check {
  readonly 'check-errors': number;
  readonly corruptions?: number;
}

/** What the reference's check finds wrong, leaks left out; undefined where it cannot look. */
function errorsIn(folder: string): number | undefined {
  const { stdout } = theirs(['check', '-f', 'qcow2', '--output=json', NAME], folder);
  if (stdout === '') return undefined;
  const found = JSON.parse(stdout) as Check;
  return found['check-errors'] + (found.corruptions ?? 0);
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
      text: shown(result),
      status: result.status,
      changed: !readFileSync(join(place, NAME)).equals(readFileSync(join(sound, NAME))),
      out: result.status === 0 && existsSync(out) ? readFileSync(out) : undefined,
    };
  };

  for (let seed = FIRST_SEED; seed < FIRST_SEED + CASES; seed++) {
    it(`seed ${seed}`, { timeout: 60_000 }, () => {
      const { kind, damage: what, line } = damage(seed, sound, NAME);
      const title = `${kind}, ${what}: ${line}`;
      const [a, b] = [attempt(ours, line), attempt(theirs, line)];
      if (!isMeant(line, a.text, b.text)) expect(a.text, title).toBe(b.text);
      if (a.out !== undefined && b.out !== undefined)
        expect(a.out.equals(b.out), `${title}: content`).toBe(true);
      if (!a.changed) return;
      const [left, right] = [errorsIn(a.place), errorsIn(b.place)];
      if (right !== undefined) expect(left, `${title}: errors after`).toBeLessThanOrEqual(right);
    });
  }
});
