/**
 * Both directions, for every format and option combination that exists so far: what the reference writes we read, what
 * we write the reference reads, checks and compares. Content is stamped, seeds are fixed.
 */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { qemuImg } from '../support/client.js';
import { describeInterop, type RunResult, reference, run, tempDir } from '../support/reference.js';
import { writeStamped } from '../support/stamped.js';

interface Combination {
  readonly format: string;
  readonly options: readonly string[];
  readonly convert?: readonly string[];
  /** Guest bytes; some do not end on a cluster. */
  readonly size?: number;
}

const MiB = 1024 * 1024;

function* qcow2(): Generator<Combination> {
  const odd = 7 * MiB + 1536;
  for (const compat of ['0.10', '1.1']) {
    for (const cluster of ['512', '4k', '64k', '2M']) {
      yield { format: 'qcow2', options: [`compat=${compat}`, `cluster_size=${cluster}`], size: odd };
      yield {
        format: 'qcow2',
        options: [`compat=${compat}`, `cluster_size=${cluster}`],
        convert: ['-c'],
        size: odd,
      };
    }
  }
  for (const bits of ['1', '2', '4', '8', '16', '32', '64']) {
    yield { format: 'qcow2', options: [`refcount_bits=${bits}`, 'cluster_size=4k'] };
  }
  for (const cluster of ['16k', '64k', '2M']) {
    yield { format: 'qcow2', options: ['extended_l2=on', `cluster_size=${cluster}`], size: odd };
  }
  yield { format: 'qcow2', options: ['extended_l2=on', 'cluster_size=128k'], convert: ['-c'] };
  for (const cluster of ['512', '64k', '2M']) {
    yield {
      format: 'qcow2',
      options: ['compression_type=zstd', `cluster_size=${cluster}`],
      convert: ['-c'],
      size: odd,
    };
  }
  for (const mode of ['metadata', 'falloc', 'full']) {
    yield { format: 'qcow2', options: [`preallocation=${mode}`] };
    yield { format: 'qcow2', options: [`preallocation=${mode}`, 'extended_l2=on'] };
  }
  yield { format: 'qcow2', options: ['lazy_refcounts=on'] };
  for (const sparse of ['0', '4k', '64k', '192k'])
    yield { format: 'qcow2', options: [], convert: ['-S', sparse] };
  yield { format: 'qcow2', options: ['data_file=@DATA@'] };
  yield { format: 'qcow2', options: ['data_file=@DATA@', 'data_file_raw=on'] };
  yield { format: 'qcow2', options: ['data_file=@DATA@', 'cluster_size=4k'], size: odd };
}

function* raw(): Generator<Combination> {
  for (const mode of ['off', 'falloc', 'full']) yield { format: 'raw', options: [`preallocation=${mode}`] };
  for (const sparse of ['0', '512', '64k', '12k'])
    yield { format: 'raw', options: [], convert: ['-S', sparse] };
  yield { format: 'raw', options: [], convert: ['-m', '1'] };
  yield { format: 'raw', options: [], convert: ['-W', '-m', '16'] };
}

const folder = tempDir();

function good(result: RunResult): RunResult {
  expect(result, result.stderr).toMatchObject({ status: 0 });
  return result;
}

function convertArgs(test: Combination, from: string, to: string, data: string): string[] {
  const options = test.options.join(',').replace('@DATA@', data);
  return [
    'convert',
    '-f',
    'raw',
    '-O',
    test.format,
    ...(options === '' ? [] : ['-o', options]),
    ...(test.convert ?? []),
    from,
    to,
  ];
}

let seed = 1;
const cases: [string, Combination, number][] = [...raw(), ...qcow2()].map((test) => [
  `${test.format} ${[...test.options, ...(test.convert ?? [])].join(' ')}`,
  test,
  seed++,
]);

describeInterop('formats, both directions', () => {
  it.each(cases)('%s', (_name, test, number) => {
    const size = test.size ?? 8 * MiB;
    const from = join(folder, `${number}.raw`);
    const content = writeStamped(from, size, number);
    const paths = { theirs: `${from}.theirs`, ours: `${from}.ours` };
    const back = `${from}.back`;

    // The reference writes, we read.
    good(run(reference.qemuImg!, convertArgs(test, from, paths.theirs, `${paths.theirs}.data`)));
    good(qemuImg(['convert', '-f', test.format, '-O', 'raw', paths.theirs, back]));
    expect(readFileSync(back).equals(content)).toBe(true);
    good(qemuImg(['compare', '-f', test.format, '-F', 'raw', paths.theirs, from]));

    // We write, the reference reads.
    good(qemuImg(convertArgs(test, from, paths.ours, `${paths.ours}.data`)));
    good(run(reference.qemuImg!, ['compare', '-f', test.format, '-F', 'raw', paths.ours, from]));
    if (test.format !== 'raw') {
      const checked = good(run(reference.qemuImg!, ['check', '-f', test.format, paths.ours]));
      expect(checked.stdout).toContain('No errors were found');
      good(qemuImg(['check', '-f', test.format, paths.ours]));
      good(qemuImg(['check', '-f', test.format, paths.theirs]));
    }
    // Ours is no larger on disk than theirs by more than some metadata.
    const blocks = (path: string) => {
      const info = JSON.parse(
        run(reference.qemuImg!, ['info', '--output=json', '-f', test.format, path]).stdout,
      );
      return info['actual-size'] as number;
    };
    expect(blocks(paths.ours)).toBeLessThanOrEqual(blocks(paths.theirs) * 1.1 + 256 * 1024);
    for (const path of [from, back, ...Object.values(paths)]) {
      rmSync(path, { force: true });
      rmSync(`${path}.data`, { force: true });
    }
  });
});
