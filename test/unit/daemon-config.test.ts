import { chmodSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ConfigError, helpText, parseConfig } from '../../src/daemon/config.js';
import { VERSION } from '../../src/daemon/version.js';
import { defaultSocketPath } from '../../src/protocol/endpoint.js';
import { tempDir } from '../support/reference.js';

const folder = tempDir();
const tokens = join(folder, 'tokens');
writeFileSync(tokens, '# who\n0123456789abcdef\n\n  fedcba9876543210  watch \n', { mode: 0o600 });

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
    expect(refusal(['--listen', '0.0.0.0:80', '--token-file', tokens])).toMatch(/loopback.*only with TLS/);
    expect(refusal(['--listen', 'imgd.example:80', '--token-file', tokens])).toMatch(/only with TLS/);
    expect(refusal(['--listen', 'nothing'])).toMatch(/an address and a port/);
    expect(refusal(['--tls-cert', tokens])).toMatch(/together or not at all/);
    expect(refusal(['--tls-cert', tokens, '--tls-key', tokens])).toMatch(/--tls-cert .*: no.start.line/i);
    expect(refusal(['--socket-mode', '666'])).toMatch(/--socket-mode takes 600 or 660/);
    expect(refusal(['--socket-group', 'no-such-group'])).toMatch(/there is no group 'no-such-group'/);
    expect(refusal(['--group-role', 'king'])).toMatch(/--group-role takes watch, operate, admin/);
    expect(refusal(['--allow-host', 'a b'])).toMatch(/--allow-host takes a host/);
    expect(refusal(['--listen', '127.0.0.1:99999'])).toMatch(/no port 99999/);
    expect(refusal(['--listen', '127.0.0.1:0'])).toBe('--listen needs --token-file');
    expect(refusal(['--allow-origin', 'http://x/y'])).toMatch(/--allow-origin/);
    expect(refusal(['--root', join(folder, 'none')])).toMatch(/--root .*ENOENT/);
    expect(refusal(['--root', tokens])).toMatch(/not a folder/);
  });

  it('reads tokens, and shows none of them in an error', () => {
    const listen = ['--listen', '127.0.0.1:0', '--token-file'];
    expect(config([...listen, tokens, '--socket', '/s']).tokens).toEqual([
      { token: '0123456789abcdef', role: 'admin' },
      { token: 'fedcba9876543210', role: 'watch' },
    ]);
    expect(config(['--listen', '[::1]:80', '--token-file', tokens, '--socket', '/s']).listen).toEqual({
      host: '::1',
      port: 80,
    });
    const short = join(folder, 'short');
    writeFileSync(short, 'sesame\n', { mode: 0o600 });
    expect(refusal([...listen, short])).toMatch(/at least 16/);
    expect(refusal([...listen, short])).not.toMatch(/sesame/);
    const strange = join(folder, 'strange');
    writeFileSync(strange, '# one\n0123456789abcdef sesame0123456789\n', { mode: 0o600 });
    expect(refusal([...listen, strange])).toMatch(
      /line 2: a role \(watch, operate, admin\) or nothing follows/,
    );
    expect(refusal([...listen, strange])).not.toMatch(/sesame/);
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

  it('takes a file, below the environment, below flags, and names the line that is wrong', () => {
    const file = join(folder, 'imgd.conf');
    const write = (text: string): string[] => {
      writeFileSync(file, text);
      return ['--config', file, '--socket', '/s'];
    };
    const all = write(
      `# limits\n\nmax-jobs = 7\nmax-calls=8\n  max-connections =  9\ndrain = yes\nroot = ${folder}\nroot = /\n`,
    );
    const read = config([...all, '--max-calls', '80'], { IMGD_MAX_CALLS: '88', IMGD_MAX_CONNECTIONS: '99' });
    expect(read).toMatchObject({
      maxJobs: 7,
      maxCalls: 80,
      maxConnections: 99,
      drain: true,
      roots: [folder, '/'],
    });
    expect(config(['--socket', '/s'], { IMGD_CONFIG: file, IMGD_ROOT: folder }).roots).toEqual([folder]);
    const wrong = (text: string): string => refusal(write(text)).replace(file, 'F');
    expect(wrong('max-jobs = 7\nfrob = 1\n')).toBe("F:2: there is no setting 'frob'");
    expect(wrong('help = yes\n')).toBe("F:1: there is no setting 'help'");
    expect(wrong('max-jobs\n')).toMatch(/^F:1: a line is NAME = VALUE/);
    expect(wrong('max-jobs = \n')).toBe('F:1: max-jobs has no value');
    expect(wrong('max-jobs = 1\nmax-jobs = 2\n')).toBe('F:2: max-jobs is set twice');
    expect(wrong('\nmax-jobs = many\n')).toMatch(/^F:2: max-jobs takes a whole number/);
    expect(wrong('drain = perhaps\n')).toMatch(/^F:1: drain takes yes or no/);
    expect(refusal(['--config', join(folder, 'gone')])).toMatch(/^cannot read .*ENOENT/);
    chmodSync(file, 0o666);
    expect(refusal(['--config', file])).toMatch(/others may write it/);
    expect(refusal([], { IMGD_MAX_JOBS: 'x', XDG_RUNTIME_DIR: '/r' })).toMatch(/^IMGD_MAX_JOBS takes/);
  });

  it('tells with --check-config what is set and by what, and no secret', () => {
    const file = join(folder, 'check.conf');
    writeFileSync(file, `token-file = ${tokens}\n`);
    const argv = ['--config', file, '--check-config', '--max-jobs', '5', '--socket', '/s'];
    const checked = parseConfig(argv, { IMGD_LOG_LEVEL: 'warn' }, 1);
    if (checked.kind !== 'checked') throw new Error(checked.kind);
    expect(checked.text).toContain('max-jobs = 5  # flag\n');
    expect(checked.text).toContain('log-level = warn  # environment\n');
    expect(checked.text).toContain(`token-file = ${tokens}  # file\n`);
    expect(checked.text).toContain('max-calls = 128  # default\n');
    expect(checked.text).not.toContain('0123456789abcdef');
    expect(refusal([...argv, '--max-calls', '0'])).toMatch(/--max-calls/);
  });

  it('helps, and knows its version', () => {
    expect(parseConfig(['--help'], {}, 1)).toEqual({ kind: 'help', text: helpText() });
    expect(helpText()).toMatch(/--socket PATH .*\[IMGD_SOCKET\]/);
    expect(parseConfig(['--version'], {}, 1)).toEqual({ kind: 'version' });
    const stated = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
    expect(VERSION).toBe(stated.version);
  });
});
