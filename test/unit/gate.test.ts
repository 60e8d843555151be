/** The gate against names that change between the look and the opening, and links that lead to nothing yet. */
import {
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  realpathSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { checkAllowed, confine } from '../../src/engine/node/gate.js';
import { openFile } from '../../src/engine/storage/file.js';
import { tempDir } from '../support/reference.js';

const base = realpathSync(tempDir());
const root = join(base, 'root');
const policy = { roots: [root] };
mkdirSync(root);
writeFileSync(join(base, 'secret'), 'secret');
writeFileSync(join(root, 'own'), 'own');

const refusal = (run: () => void): unknown => {
  try {
    run();
    return undefined;
  } catch (error) {
    return (error as { context: { check: string } }).context.check;
  }
};

describe('the gate', () => {
  it('follows links that lead to nothing', () => {
    symlinkSync(join(base, 'new'), join(root, 'out'));
    symlinkSync('out', join(root, 'twice'));
    symlinkSync('new', join(root, 'in'));
    symlinkSync('loop', join(root, 'loop'));
    const check = (name: string): unknown =>
      refusal(() => checkAllowed(join(root, name), name, 'caller', policy));
    expect(check('out')).toBe('image-root');
    expect(check('twice')).toBe('image-root');
    expect(check('in')).toBeUndefined();
    // Cannot be opened in any case.
    expect(check('loop')).toBeUndefined();
  });

  it('looks at what was opened, whatever its name leads to by then', async () => {
    expect(confine('x', 'caller', {})).toBeUndefined();
    const check = confine('x', 'backing', policy)!;
    for (const [name, expected] of [
      [join(base, 'secret'), 'image-root-backing'],
      [join(root, 'own'), undefined],
    ] as const) {
      const fd = openSync(name, 'r');
      expect(refusal(() => check(fd))).toBe(expected);
      closeSync(fd);
    }
    // As if the symlink had not been there when the name was looked at; the file is not emptied.
    symlinkSync(join(base, 'secret'), join(root, 'raced'));
    const opening = openFile({
      path: join(root, 'raced'),
      writable: true,
      create: 'truncate',
      confined: confine('raced', 'caller', policy),
    });
    await expect(opening).rejects.toMatchObject({ kind: 'denied', context: { check: 'image-root' } });
    expect(readFileSync(join(base, 'secret'), 'utf8')).toBe('secret');
  });
});
