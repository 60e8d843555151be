import { readdirSync, readFileSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '../..');

function sources(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => join(root, folder, name));
}

interface Import {
  readonly from: string;
  /** Relative to the project: `src/engine/error`. A package: its name. */
  readonly to: string;
  readonly typeOnly: boolean;
  readonly dynamic: boolean;
}

function importsOf(file: string): Import[] {
  const text = readFileSync(file, 'utf8');
  const found: Import[] = [];
  const add = (specifier: string, typeOnly: boolean, dynamic: boolean) => {
    const to = specifier.startsWith('.')
      ? relative(root, resolve(file, '..', specifier)).replace(/\.js$/, '')
      : specifier;
    found.push({ from: relative(root, file), to, typeOnly, dynamic });
  };
  for (const match of text.matchAll(/^(?:import|export)(\s+type)?\s[^;'"]*?from\s+'([^']+)'/gms)) {
    add(match[2]!, match[1] !== undefined, false);
  }
  for (const match of text.matchAll(/^import\s+'([^']+)'/gm)) add(match[1]!, false, false);
  for (const match of text.matchAll(/\bimport\(\s*(?:\/\*.*?\*\/\s*)?'([^']+)'/g))
    add(match[1]!, false, true);
  return found;
}

const inside = (path: string, ...folders: string[]) => folders.some((folder) => path.startsWith(folder));

describe('imports go protocol <- engine <- daemon', () => {
  it('finds imports at all', () => {
    expect(sources('src/engine').flatMap(importsOf).length).toBeGreaterThan(50);
  });

  it('protocol imports nothing of the project outside itself, and nothing of Node', () => {
    const wrong = sources('src/protocol')
      .flatMap(importsOf)
      .filter(({ to }) => (to.startsWith('src/') && !inside(to, 'src/protocol/')) || to.startsWith('node:'));
    expect(wrong).toEqual([]);
  });

  it('the engine knows neither the daemon nor the clients', () => {
    const wrong = sources('src/engine')
      .flatMap(importsOf)
      .filter(({ to }) => inside(to, 'src/daemon/', 'clients/'));
    expect(wrong).toEqual([]);
  });

  it('the daemon does not know the clients', () => {
    const wrong = sources('src/daemon')
      .flatMap(importsOf)
      .filter(({ to }) => inside(to, 'clients/'));
    expect(wrong).toEqual([]);
  });

  it('the qemu-img client imports protocol alone, but for types and the embedded mode', () => {
    const wrong = sources('clients/qemu-img')
      .flatMap(importsOf)
      .filter(({ to }) => inside(to, 'src/engine/', 'src/daemon/'))
      .filter(({ from, typeOnly }) => !typeOnly && from !== 'clients/qemu-img/embedded.ts');
    expect(wrong).toEqual([]);
  });

  it('operations and the daemon compare no format names', () => {
    const pattern = /(?:===|!==|case)\s*'(?:raw|qcow2|vmdk|dmg|vdi|vpc|vhdx|qed|luks|parallels)'/;
    const wrong = [...sources('src/engine/operations'), ...sources('src/daemon')].filter((file) =>
      pattern.test(readFileSync(file, 'utf8')),
    );
    expect(wrong.map((file) => relative(root, file))).toEqual([]);
  });

  it('formats do not import operations or each other', () => {
    const wrong = sources('src/engine/formats')
      .flatMap(importsOf)
      .filter(({ from, to, dynamic }) => {
        if (inside(to, 'src/engine/operations/')) return true;
        const own = /^src\/engine\/formats\/([^/]+)\//.exec(from)?.[1];
        const other = /^src\/engine\/formats\/([^/]+)\//.exec(to)?.[1];
        return !dynamic && own !== undefined && other !== undefined && own !== other;
      });
    expect(wrong).toEqual([]);
  });
});
