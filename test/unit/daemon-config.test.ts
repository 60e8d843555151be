import { chmodSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ConfigError, helpText, parseConfig } from '../../src/daemon/config.js';
import { VERSION } from '../../src/daemon/version.js';
import { defaultSocketPath } from '../../src/protocol/endpoint.js';
import { tempDir } from '../support/reference.js';

const folder = tempDir();
const tokens = join(folder, 'tokens');
writeFileSync(tokens, '# who\n0123456789abcdef\n\n  fedcba9876543210 \n', { mode: 0o600 });

function config(argv: string[], env: Record<string, string> = {}, uid = 1000) {
  const invocation = parseConfig(argv, env, uid);
  if (invocation.kind !== 'run') throw new Error(invocation.kind);
  return invocation.config;
}
const refusal = (
  argv: string[],
  env: Record<string, string> = { XDG_RUNTIME_DIR: '/run/user/1000' },
): string => {
  try {
    config(argv, env);
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    return (error as Error).message;
  }
  throw new Error('was accepted');
};

describe('settings of the daemon', () => {
  it('finds the socket: flag, environment, root, runtime folder', () => {
    expect(config(['--socket', '/a/b'], { IMGD_SOCKET: '/c' }).socket).toBe('/a/b');
    expect(config([], { IMGD_SOCKET: '/c', XDG_RUNTIME_DIR: '/r' }).socket).toBe('/c');
    expect(config([], { XDG_RUNTIME_DIR: '/r' }, 0).socket).toBe('/run/imgd/imgd.sock');
    expect(config([], { XDG_RUNTIME_DIR: '/r/' }).socket).toBe('/r/imgd/imgd.sock');
    expect(defaultSocketPath({ XDG_RUNTIME_DIR: 'relative' }, 1)).toBeUndefined();
    expect(refusal([], {})).toMatch(/XDG_RUNTIME_DIR is not set/);
  });

  it('says what is wrong with a flag', () => {
    expect(refusal(['--frob'])).toBe("Unknown option '--frob'");
    expect(refusal(['stray'])).toMatch(/stray/);
    expect(refusal(['--socket'])).toMatch(/--socket/);
    expect(refusal(['--socket', `/${'x'.repeat(120)}`])).toMatch(/too long/);
    expect(refusal(['--max-jobs', '0'])).toMatch(
      /--max-jobs takes a whole number from 1 to 1000000, not '0'/,
    );
    expect(refusal(['--max-jobs', '1e3'])).toMatch(/--max-jobs/);
    expect(refusal(['--log-level', 'loud'])).toMatch(/--log-level takes trace/);
    expect(refusal(['--listen', '0.0.0.0:80'])).toMatch(/loopback/);
    expect(refusal(['--listen', '127.0.0.1:99999'])).toMatch(/no port 99999/);
    expect(refusal(['--listen', '127.0.0.1:0'])).toBe('--listen needs --token-file');
    expect(refusal(['--allow-origin', 'http://x/y'])).toMatch(/--allow-origin/);
    expect(refusal(['--root', join(folder, 'none')])).toMatch(/--root .*ENOENT/);
    expect(refusal(['--root', tokens])).toMatch(/not a folder/);
  });

  it('reads tokens, and shows none of them in an error', () => {
    const listen = ['--listen', '127.0.0.1:0', '--token-file'];
    expect(config([...listen, tokens, '--socket', '/s']).tokens).toEqual([
      '0123456789abcdef',
      'fedcba9876543210',
    ]);
    expect(config(['--listen', '[::1]:80', '--token-file', tokens, '--socket', '/s']).listen).toEqual({
      host: '::1',
      port: 80,
    });
    const short = join(folder, 'short');
    writeFileSync(short, 'sesame\n', { mode: 0o600 });
    expect(refusal([...listen, short])).toMatch(/at least 16/);
    expect(refusal([...listen, short])).not.toMatch(/sesame/);
    const open = join(folder, 'open');
    writeFileSync(open, '0123456789abcdef\n');
    chmodSync(open, 0o644);
    expect(refusal([...listen, open])).toMatch(/others may read/);
    const none = join(folder, 'none');
    writeFileSync(none, '# nothing\n', { mode: 0o600 });
    expect(refusal([...listen, none])).toMatch(/no token/);
  });

  it('resolves symlinks in roots', () => {
    mkdirSync(join(folder, 'real'));
    symlinkSync('real', join(folder, 'link'));
    expect(config(['--socket', '/s', '--root', join(folder, 'link'), '--root', folder]).roots).toEqual([
      join(folder, 'real'),
      folder,
    ]);
    expect(config(['--socket', '/s']).roots).toBeUndefined();
  });

  it('helps, and knows its version', () => {
    expect(parseConfig(['--help'], {}, 1)).toEqual({ kind: 'help', text: helpText() });
    expect(helpText()).toMatch(/--socket PATH .*\[IMGD_SOCKET\]/);
    expect(parseConfig(['--version'], {}, 1)).toEqual({ kind: 'version' });
    const stated = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
    expect(VERSION).toBe(stated.version);
  });
});
