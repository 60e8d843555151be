/** The documents in docs/ are what their generators make of the declarations. `npm run docs` writes them. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { names } from '../../clients/qemu-img/commands/index.js';
import { settings } from '../../src/daemon/config.js';
import { driverNames } from '../../src/engine/formats/index.js';
import { commands } from '../../src/protocol/commands/index.js';
import { protocolComments } from '../docs/comments.js';
import { imgdPage } from '../docs/imgd.js';
import { qemuImgPage } from '../docs/qemu-img.js';
import { rpcReference } from '../docs/rpc.js';

const root = resolve(import.meta.dirname, '../..');
const update = process.env.IMGD_UPDATE_DOCS === '1';

function held(name: string, text: string): void {
  const path = join(root, 'docs', name);
  if (update) {
    mkdirSync(join(root, 'docs'), { recursive: true });
    writeFileSync(path, text);
  }
  expect(readFileSync(path, 'utf8') === text, `docs/${name} is up to date (npm run docs)`).toBe(true);
}

describe('documents made from declarations', () => {
  it('docs/rpc.md has every command, and comments where the sources have them', () => {
    const text = rpcReference(protocolComments(root));
    for (const name of Object.keys(commands)) expect(text).toContain(`\n### ${name}\n`);
    // An own member's, one that is spread in, and one of a member's member.
    expect(text).toContain('| `salvage` | boolean | Read errors become zeros. |');
    expect(text).toContain('| `cwd` | string | Absolute path');
    expect(text).toMatch(/\| `target\.node` \| string \| A held image/);
    expect(text).toContain('| `wait` | boolean; default `true` | True: ');
    // No link goes nowhere.
    const anchors = new Set([...text.matchAll(/^##+ (.+)$/gm)].map(([, title]) => title!.toLowerCase()));
    const links = [...text.matchAll(/\]\(#([^)]+)\)/g)].map(([, anchor]) => anchor!);
    expect(links.filter((anchor) => !anchors.has(anchor))).toEqual([]);
    held('rpc.md', text);
  });

  const inMan = (word: string): string => word.replaceAll('-', '\\-');

  it('docs/imgd.8 has every setting', () => {
    const text = imgdPage();
    for (const { flag } of settings) expect(text).toContain(inMan(`--${flag}`));
    held('imgd.8', text);
  });

  it('docs/qemu-img.1 has every subcommand and every format', async () => {
    const text = await qemuImgPage();
    for (const name of [...names, ...driverNames]) expect(text).toContain(`\n.SS "${name}"\n`);
    held('qemu-img.1', text);
  });

  const groff = spawnSync('groff', ['--version']).status === 0;
  it.skipIf(!groff).each(['imgd.8', 'qemu-img.1'])('groff has nothing to say about docs/%s', (name) => {
    const args = ['-man', '-ww', '-Tutf8', '-z', '-rCHECKSTYLE=3', join(root, 'docs', name)];
    const { status, stderr } = spawnSync('groff', args, { encoding: 'utf8' });
    expect(stderr).toBe('');
    expect(status).toBe(0);
  });
});
