/** What goes wrong must be said in one line, with the right exit code, and leave neither a lock nor a half state. */

import { randomBytes } from 'node:crypto';
import { chmodSync, existsSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { clientMain, qemuImg } from '../support/client.js';
import { describeInterop, reference, run, tempDir } from '../support/reference.js';
import { writeStamped } from '../support/stamped.js';

const MiB = 1024 * 1024;
const folder = tempDir();
const at = (name: string) => join(folder, name);
/** The reference by its bare name: it calls itself by the name that it was started by. */
const theirs = (args: readonly string[]) => run('qemu-img', args, { cwd: folder });
const ours = (args: readonly string[]) => qemuImg(args, { cwd: folder });

/** The same command line with both programs: the same text and exit code. */
function same(args: readonly string[]): void {
  const expected = theirs(args);
  expect(ours(args)).toEqual(expected);
  expect(expected.status).not.toBe(0);
}

/** Taking a write lock with the reference shows that nobody holds one. */
function unlocked(path: string): void {
  expect(run(reference.qemuIo!, ['-c', 'read 0 512', path]).status).toBe(0);
  expect(theirs(['check', '-f', 'qcow2', path]).stderr).not.toContain('lock');
}

describeInterop('errors', () => {
  it('a file that does not exist, a folder, an unknown format and option', () => {
    writeStamped(at('a.raw'), MiB, 1);
    for (const command of ['info', 'check', 'map']) {
      same([command, 'missing.img']);
      same([command, '-f', 'nonsense', 'a.raw']);
      same([command, '.']);
    }
    same(['convert', '-O', 'qcow2', 'missing.img', 'out.qcow2']);
    same(['convert', '-O', 'nonsense', 'a.raw', 'out.qcow2']);
    same(['convert', '-O', 'qcow2', '-o', 'nonsense=1', 'a.raw', 'out.qcow2']);
    same(['create', '-f', 'qcow2', '-o', 'cluster_size=1000', 'out.qcow2', '1M']);
    same(['create', '-f', 'qcow2', 'out.qcow2', 'huge']);
    same(['create', '-f', 'qcow2', 'no/such/folder/out.qcow2', '1M']);
    same(['compare', 'a.raw', 'missing.img']);
    same(['convert', '-O', 'qcow2', 'a.raw', 'no/such/folder/out.qcow2']);
    same(['info', '--nonsense', 'a.raw']);
    same(['info', '--image-opts', 'driver=qcow2,nonsense=1,file.filename=a.raw']);
    expect(existsSync(at('out.qcow2'))).toBe(false);
  });

  it('json: names and --object that are no JSON, or twice the same', () => {
    writeStamped(at('j.raw'), MiB, 1);
    const texts = [
      '',
      '{',
      '[1]',
      'nul',
      '%s',
      '{x}',
      '{"a":1,"a":2}',
      '{"driver":"raw",}',
      '{"driver":raw}',
      '{"driver":"raw" "size":1}',
      '{"driver":"raw","file.filename":"j.raw"} x',
      '{"driver":"raw\\q"}',
      '{"size":01}',
      '{"size":-}',
      '{"x":"abc',
      '{"driver":"raw","file":{"driver":"file","filename":"j.raw","filename":"j.raw"}}',
      '{"driver":"raw","file.filename":"j.\\ud800raw"}',
      '{"driver":"raw","filename":"j.raw"}',
      '{"filename":"j.raw"}',
      '{"driver":"raw","file":"j.raw"}',
    ];
    for (const text of texts) same(['info', `json:${text}`]);
    for (const text of ['{', '{x}', '{"id":"a","id":"b"}', '{"qom-type":5}', '{"qom-type":"secret"} 1']) {
      same(['info', '--object', text, 'j.raw']);
    }
    same(['info', '--object', '{"qom-type":"secret","id":"s","data":5}', 'j.raw']);
  });

  it.skipIf(process.getuid?.() === 0)('an unreadable file', () => {
    writeStamped(at('secret.raw'), MiB, 1);
    chmodSync(at('secret.raw'), 0);
    same(['info', 'secret.raw']);
  });

  it('malformed images: cut, with a wild header, with tables outside the file', () => {
    writeStamped(at('b.raw'), 4 * MiB, 2);
    theirs(['convert', '-f', 'raw', '-O', 'qcow2', 'b.raw', 'good.qcow2']);
    const good = readFileSync(at('good.qcow2'));
    const patch = (name: string, change: (bytes: Buffer) => void) => {
      const bytes = Buffer.from(good);
      change(bytes);
      writeFileSync(at(name), bytes);
      for (const args of [
        ['info', '-f', 'qcow2', name],
        ['map', '-f', 'qcow2', name],
      ]) {
        const expected = theirs(args);
        const result = ours(args);
        expect(result.status, `${name}: ${result.stderr}`).toBe(expected.status);
        expect(result.stderr).toBe(expected.stderr);
      }
    };
    patch('version', (b) => b.writeUInt32BE(9, 4));
    patch('cluster-bits-small', (b) => b.writeUInt32BE(3, 20));
    patch('cluster-bits-large', (b) => b.writeUInt32BE(40, 20));
    patch('refcount-order', (b) => b.writeUInt32BE(7, 96));
    patch('header-length', (b) => b.writeUInt32BE(90, 100));
    patch('l1-size', (b) => b.writeUInt32BE(0x7fffffff, 36));
    patch('l1-offset', (b) => b.writeBigUInt64BE(0x123n, 40));
    patch('reftable-offset', (b) => b.writeBigUInt64BE(0x123n, 48));
    patch('reftable-clusters', (b) => b.writeUInt32BE(0x7fffffff, 56));
    patch('incompatible', (b) => b.writeBigUInt64BE(1n << 40n, 72));
    patch('encrypted', (b) => b.writeUInt32BE(7, 32));
    patch('size', (b) => b.writeBigUInt64BE(1n << 62n, 24));
    patch('backing-offset', (b) => {
      b.writeBigUInt64BE(1n << 50n, 8);
      b.writeUInt32BE(10, 16);
    });
    patch('backing-length', (b) => {
      b.writeBigUInt64BE(512n, 8);
      b.writeUInt32BE(5000, 16);
    });
    writeFileSync(at('cut'), good.subarray(0, 40));
    expect(ours(['info', '-f', 'qcow2', 'cut'])).toEqual(theirs(['info', '-f', 'qcow2', 'cut']));
    const small = at('shrunk.qcow2');
    writeFileSync(small, good);
    truncateSync(small, 3 * 65536);
    const result = ours(['convert', '-O', 'raw', small, 'x.raw']);
    expect([0, 1]).toContain(result.status);
    expect(result.stderr.split('\n').length).toBeLessThanOrEqual(3);
  });

  it('a missing backing file, and a loop of backing files', () => {
    theirs(['create', '-q', '-f', 'raw', 'base.raw', '1M']);
    theirs(['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw', 'top.qcow2']);
    theirs(['rebase', '-u', '-F', 'qcow2', '-b', 'gone.qcow2', 'top.qcow2']);
    same(['convert', '-O', 'raw', 'top.qcow2', 'y.raw']);
    expect(existsSync(at('y.raw'))).toBe(false);
    expect(ours(['info', 'top.qcow2']).status).toBe(0);
    theirs(['create', '-q', '-f', 'qcow2', '-u', '-F', 'qcow2', '-b', 'loop2.qcow2', 'loop1.qcow2', '1M']);
    theirs(['create', '-q', '-f', 'qcow2', '-u', '-F', 'qcow2', '-b', 'loop1.qcow2', 'loop2.qcow2', '1M']);
    const result = ours(['convert', '-O', 'raw', 'loop1.qcow2', 'z.raw']);
    expect(result.status).toBe(1);
    expect(result.stderr).toMatch(/^qemu-img: Could not open 'loop1.qcow2': .*[Ll]oop.*\n$/);
    expect(ours(['info', '--backing-chain', 'loop1.qcow2']).status).toBe(1);
  });

  it('a full disk in the middle of a conversion leaves nothing behind', () => {
    writeFileSync(at('big.raw'), randomBytes(24 * MiB));
    const before = readdirSync(folder);
    for (const target of [['raw'], ['qcow2'], ['qcow2', '-c']]) {
      // A limit on the file size stands in for a full disk: it needs no file system of its own. Blocks of 1 KiB.
      const line = `trap '' XFSZ; ulimit -f 2048; exec "$0" "$@"`;
      const result = run(
        'bash',
        [
          '-c',
          line,
          process.execPath,
          clientMain,
          'convert',
          '-f',
          'raw',
          '-O',
          ...target,
          at('big.raw'),
          at('full.img'),
        ],
        { env: { IMGD_SOCKET: '' } },
      );
      expect(result.status).toBe(1);
      expect(result.stderr).toMatch(/^qemu-img: .*(File too large|No space left on device)\n$/);
      expect(readdirSync(folder)).toEqual(before);
    }
  });

  it('a full disk in the middle of a conversion into an existing image leaves a sound one', () => {
    theirs(['create', '-q', '-f', 'qcow2', 'exist.qcow2', '24M']);
    const line = `trap '' XFSZ; ulimit -f 2048; exec "$0" "$@"`;
    const result = run(
      'bash',
      [
        '-c',
        line,
        process.execPath,
        clientMain,
        'convert',
        '-n',
        '-f',
        'raw',
        '-O',
        'qcow2',
        at('big.raw'),
        at('exist.qcow2'),
      ],
      { env: { IMGD_SOCKET: '' } },
    );
    expect(result.status).toBe(1);
    expect([0, 3]).toContain(theirs(['check', '-f', 'qcow2', 'exist.qcow2']).status);
    unlocked(at('exist.qcow2'));
  });
});
