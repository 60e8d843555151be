/** Backing chains, -B, snapshots, concatenation and existing targets, against the reference. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { qemuImg } from '../support/client.js';
import { describeInterop, type RunResult, reference, run, tempDir } from '../support/reference.js';
import { generator, writeStamped } from '../support/stamped.js';

const MiB = 1024 * 1024;
const folder = tempDir();
const at = (name: string) => join(folder, name);
const theirs = (...args: string[]) => good(run(reference.qemuImg!, args));
const ours = (...args: string[]) => good(qemuImg(args));

function good(result: RunResult): RunResult {
  expect(result, result.stderr).toMatchObject({ status: 0 });
  return result;
}

/** Random writes, zeroes and discards by qemu-io, applied to a model too. */
function scribble(path: string, model: Buffer, seed: number, count: number): void {
  const random = generator(seed);
  const commands: string[] = [];
  for (let i = 0; i < count; i++) {
    const start = Math.floor(random() * (model.byteLength / 512 - 1)) * 512;
    const length = Math.min(model.byteLength - start, (1 + Math.floor(random() ** 3 * 400)) * 512);
    if (random() < 0.7) {
      const byte = 1 + Math.floor(random() * 254);
      commands.push(`write -q -P ${byte} ${start} ${length}`);
      model.fill(byte, start, start + length);
    } else {
      commands.push(`write -q -z ${random() < 0.5 ? '-u ' : ''}${start} ${length}`);
      model.fill(0, start, start + length);
    }
  }
  good(run(reference.qemuIo!, ['-f', 'qcow2', path], { input: `${commands.join('\n')}\n` }));
}

describeInterop('chains and existing images', () => {
  const size = 6 * MiB + 512;
  for (const [index, options] of [
    '',
    'cluster_size=4k',
    'extended_l2=on,cluster_size=32k',
    'compat=0.10',
  ].entries()) {
    it(`reads a chain of three layers of different sizes (${options || 'defaults'})`, () => {
      const base = at(`base${index}.raw`);
      const model = Buffer.alloc(size);
      writeStamped(base, 4 * MiB, 100 + index).copy(model);
      const flags = options === '' ? [] : ['-o', options];
      theirs('create', '-q', '-f', 'qcow2', ...flags, '-F', 'raw', '-b', base, at(`mid${index}`), '5M');
      const mid = model.subarray(0, 5 * MiB);
      scribble(at(`mid${index}`), mid, 200 + index, 60);
      theirs(
        'create',
        '-q',
        '-f',
        'qcow2',
        ...flags,
        '-F',
        'qcow2',
        '-b',
        `mid${index}`,
        at(`top${index}`),
        `${size}`,
      );
      scribble(at(`top${index}`), model, 300 + index, 60);
      ours('convert', '-f', 'qcow2', '-O', 'raw', at(`top${index}`), at('flat.raw'));
      expect(readFileSync(at('flat.raw')).equals(model)).toBe(true);

      // -B: only what the top layer has, on the same backing file.
      const thin = at(`thin${index}`);
      ours(
        'convert',
        '-f',
        'qcow2',
        '-O',
        'qcow2',
        '-B',
        at(`mid${index}`),
        '-F',
        'qcow2',
        at(`top${index}`),
        thin,
      );
      theirs('compare', '-f', 'qcow2', '-F', 'qcow2', thin, at(`top${index}`));
      theirs('check', thin);
      // The same clusters are allocated in the top layer, whether as data or as zeros.
      const allocated = ['theirs', 'ours'].map((who) => {
        const out = at(`thin.${who}`);
        const args = [
          ...['convert', '-f', 'qcow2', '-O', 'qcow2', '-B', at(`mid${index}`), '-F', 'qcow2'],
          at(`top${index}`),
          out,
        ];
        who === 'ours' ? ours(...args) : theirs(...args);
        const entries: { start: number; length: number; depth: number; present: boolean }[] = JSON.parse(
          theirs('map', '--output=json', out).stdout,
        );
        const runs: [number, number][] = [];
        for (const { start, length, depth, present } of entries) {
          if (depth !== 0 || !present) continue;
          const last = runs[runs.length - 1];
          if (last !== undefined && last[1] === start) last[1] = start + length;
          else runs.push([start, start + length]);
        }
        return runs;
      });
      expect(allocated[1]).toEqual(allocated[0]);
    });
  }

  it('takes a snapshot as source', () => {
    const model = Buffer.alloc(4 * MiB);
    theirs('create', '-q', '-f', 'qcow2', at('snap.qcow2'), '4M');
    scribble(at('snap.qcow2'), model, 1, 40);
    const before = Buffer.from(model);
    theirs('snapshot', '-c', 'first', at('snap.qcow2'));
    scribble(at('snap.qcow2'), model, 2, 40);
    for (const wanted of ['first', '1', 'snapshot.name=first', 'snapshot.id=1']) {
      ours('convert', '-O', 'raw', '-l', wanted, at('snap.qcow2'), at('snap.raw'));
      expect(readFileSync(at('snap.raw')).equals(before)).toBe(true);
    }
    ours('convert', '-O', 'raw', at('snap.qcow2'), at('snap.raw'));
    expect(readFileSync(at('snap.raw')).equals(model)).toBe(true);
    const missing = qemuImg(['convert', '-O', 'raw', '-l', 'none', at('snap.qcow2'), at('x.raw')]);
    const wanted = run(reference.qemuImg!, [
      'convert',
      '-O',
      'raw',
      '-l',
      'none',
      at('snap.qcow2'),
      at('x.raw'),
    ]);
    expect(missing).toEqual(wanted);
  });

  it('concatenates sources', () => {
    const parts = [3 * MiB, 512 * 5, MiB + 512].map((length, i) =>
      writeStamped(at(`part${i}`), length, 50 + i),
    );
    ours('convert', '-f', 'raw', '-O', 'qcow2', at('part0'), at('part1'), at('part2'), at('joined.qcow2'));
    theirs('convert', '-O', 'raw', at('joined.qcow2'), at('joined.raw'));
    expect(readFileSync(at('joined.raw')).equals(Buffer.concat(parts))).toBe(true);
  });

  it('writes into existing images with -n, over old content, and leaves what is beyond alone', () => {
    const content = writeStamped(at('new.raw'), 3 * MiB, 9);
    for (const [index, options] of ['', 'compat=0.10', 'extended_l2=on', 'cluster_size=512'].entries()) {
      const target = at(`old${index}.qcow2`);
      const model = Buffer.alloc(4 * MiB);
      theirs('create', '-q', '-f', 'qcow2', ...(options === '' ? [] : ['-o', options]), target, '4M');
      scribble(target, model, 400 + index, 80);
      const twin = `${target}.twin`;
      writeFileSync(twin, readFileSync(target));
      ours('convert', '-n', '-f', 'raw', '-O', 'qcow2', at('new.raw'), target);
      theirs('convert', '-n', '-f', 'raw', '-O', 'qcow2', at('new.raw'), twin);
      theirs('check', target);
      theirs('compare', '-f', 'qcow2', '-F', 'qcow2', target, twin);
      theirs('convert', '-O', 'raw', target, at('existing.raw'));
      expect(readFileSync(at('existing.raw')).subarray(0, content.byteLength).equals(content)).toBe(true);
    }
    const small = at('small.qcow2');
    theirs('create', '-q', '-f', 'qcow2', small, '1M');
    const args = ['convert', '-n', '-f', 'raw', '-O', 'qcow2', at('new.raw'), small];
    expect(qemuImg(args)).toEqual(run(reference.qemuImg!, args));
  });

  it('a format that is given or recorded counts more than the driver of a json: name', () => {
    const [inner, named] = [at('inner.qcow2'), at('named.qcow2')];
    theirs('create', '-q', '-f', 'qcow2', inner, '4M');
    const guest = Buffer.alloc(4 * MiB);
    scribble(inner, guest, 77, 10);
    for (const [driver, format] of [
      ['qcow2', 'raw'],
      ['raw', 'qcow2'],
    ] as const) {
      const json = `json:${JSON.stringify({ driver, 'file.filename': inner })}`;
      theirs('create', '-q', '-f', 'qcow2', '-u', '-b', json, '-F', format, named, '1M');
      for (const args of [
        ['info', '-f', format, json],
        ['info', '--backing-chain', named],
        ['map', '--output=json', named],
        ['measure', '-O', 'raw', '-f', format, json],
      ]) {
        expect(ours(...args)).toEqual(theirs(...args));
      }
      const out = at('named.raw');
      ours('convert', '-O', 'raw', named, out);
      const wanted = format === 'raw' ? readFileSync(inner) : guest;
      const read = readFileSync(out);
      expect(read.subarray(0, wanted.length).equals(wanted.subarray(0, MiB))).toBe(true);
    }
  });
});
