/** What is in contrib/ agrees with the program. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parseConfig } from '../../src/daemon/config.js';
import { tempDir } from '../support/reference.js';

const contrib = resolve(import.meta.dirname, '../../contrib');
const folder = tempDir();

describe('contrib', () => {
  it('has a configuration whose settings exist, those in comments too', () => {
    const text = readFileSync(join(contrib, 'imgd.conf'), 'utf8');
    const settings = text.split('\n').flatMap((line) => /^#?([a-z-]+) = (.*)$/.exec(line)?.slice(1) ?? []);
    expect(settings.length).toBeGreaterThan(10);
    for (let at = 0; at < settings.length; at += 2) {
      const [name, value] = [settings[at]!, settings[at + 1]!];
      const path = join(folder, 'one.conf');
      writeFileSync(path, `${name} = ${value}\n`);
      // Files and folders of the example are not here; a setting that is not known, or a value that is none, is said otherwise.
      const check = (): unknown => parseConfig(['--config', path, '--socket', '/s'], {}, 1);
      try {
        check();
      } catch (error) {
        expect((error as Error).message).toMatch(/ENOENT|together|needs|only with TLS/);
      }
    }
  });

  it('has a service that starts the program by options that it has', () => {
    const unit = readFileSync(join(contrib, 'systemd/imgd.service'), 'utf8');
    const lines = unit.split('\n').filter((line) => line.startsWith('Exec'));
    expect(lines).toHaveLength(2);
    const path = join(folder, 'empty.conf');
    writeFileSync(path, '');
    for (const line of lines) {
      const argv = line
        .split(' ')
        .slice(1)
        .map((word) => (word === '/etc/imgd/imgd.conf' ? path : word));
      expect(['run', 'checked']).toContain(parseConfig(argv, {}, 0).kind);
    }
  });
});
