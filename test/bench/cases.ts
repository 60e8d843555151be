/** What is timed, and the ratio that is wanted of each. */
import type { Inputs } from './inputs.js';

export interface Timing {
  readonly name: string;
  /** The ratio (reference / ours) that is wanted. */
  readonly goal: number;
  /** Makes the inputs; the arguments that both programs get. */
  args(): readonly string[];
  /** Run before each single run, untimed. */
  reset?(): void;
}

export function cases(inputs: Inputs): Timing[] {
  const { out, sizes } = inputs;
  const remove = () => inputs.clear();
  const convert = (name: string, goal: number, args: () => readonly string[]): Timing => ({
    name: `convert ${name}`,
    goal,
    args: () => ['convert', ...args(), out],
    reset: remove,
  });
  const [raw, qcow2] = [
    ['-f', 'raw', '-O', 'qcow2'],
    ['-f', 'qcow2', '-O', 'qcow2'],
  ];
  const toRaw = ['-f', 'qcow2', '-O', 'raw'];
  const zstd = ['-c', '-o', 'compression_type=zstd'];
  const randomQcow2 = () => inputs.converted(inputs.random(), 'random.qcow2', ...raw!);
  const compressed = (name: string, ...args: string[]) =>
    inputs.converted(inputs.text(), name, ...raw!, ...args);

  const copying: Timing[] = [
    convert('raw -> raw', 1.2, () => ['-f', 'raw', '-O', 'raw', inputs.random()]),
    convert('raw -> qcow2', 1.2, () => [...raw!, inputs.random()]),
    convert('qcow2 -> raw', 1.2, () => [...toRaw, randomQcow2()]),
    convert('qcow2 -> qcow2', 1.2, () => [...qcow2!, randomQcow2()]),
    convert(`${sizes.scatteredClusters} scattered clusters -> qcow2`, 1.2, () => [
      ...qcow2!,
      inputs.scattered(),
    ]),
    convert('-c zlib write', 1.5, () => [...raw!, '-c', inputs.text()]),
    convert('-c zlib read', 1.5, () => [...toRaw, compressed('zlib.qcow2', '-c')]),
    convert('-c zstd write', 1.0, () => [...raw!, ...zstd, inputs.text()]),
    convert('-c zstd read', 1.0, () => [...toRaw, compressed('zstd.qcow2', ...zstd)]),
    {
      name: 'compare raw, raw',
      goal: 1.2,
      args: () => {
        const twin = inputs.converted(inputs.random(), 'twin.raw', '-f', 'raw', '-O', 'raw');
        return ['compare', '-f', 'raw', '-F', 'raw', inputs.random(), twin];
      },
    },
  ];

  const onCopy = (name: string, goal: number, source: () => string, args: readonly string[]): Timing => ({
    name,
    goal,
    args: () => {
      source();
      return args;
    },
    reset: () => inputs.copy(source()),
  });
  const big = () => inputs.metadata();
  const bench = (depth: number, goal: number): Timing => ({
    name: `bench, depth ${depth}, 4 KiB`,
    goal,
    args: () => {
      const requests = ['-c', String(sizes.requests), '-d', String(depth), '-s', '4k'];
      return ['bench', '-f', 'qcow2', ...requests, inputs.base()];
    },
  });
  const dd = (size: string, mib: number): Timing => ({
    name: `dd bs=${size}`,
    goal: 1,
    args: () => {
      const source = inputs.random(`dd-${size}.raw`, mib);
      return ['dd', '-f', 'raw', '-O', 'raw', `bs=${size}`, `if=${source}`, `of=${out}`];
    },
    reset: remove,
  });
  const unsafe = ['-f', 'qcow2', '-t', 'unsafe'];
  const inPlace: Timing[] = [
    { name: 'check of all metadata', goal: 1.2, args: () => ['check', '-f', 'qcow2', big()] },
    { name: 'map of all metadata', goal: 1.2, args: () => ['map', '-f', 'qcow2', big()] },
    {
      name: 'measure of all metadata',
      goal: 1,
      args: () => ['measure', '-f', 'qcow2', '-O', 'qcow2', big()],
    },
    // What is committed is the same each time: the backing file needs no fresh copy.
    onCopy('commit', 1, () => inputs.overlay(), ['commit', ...unsafe, out]),
    onCopy(
      'rebase (safe)',
      1,
      () => {
        inputs.base('other');
        return inputs.overlay();
      },
      ['rebase', ...unsafe, '-F', 'qcow2', '-b', 'other.qcow2', out],
    ),
    onCopy('resize by half', 1, big, ['resize', '-q', '-f', 'qcow2', out, `+${halfOf(sizes.metadata)}`]),
    onCopy('snapshot create, all metadata', 1, big, ['snapshot', '-c', 's', out]),
    onCopy('snapshot apply, all metadata', 1, () => inputs.withSnapshot(), ['snapshot', '-a', 's', out]),
    onCopy('snapshot delete, all metadata', 1, () => inputs.withSnapshot(), ['snapshot', '-d', 's', out]),
    onCopy('amend refcount_bits, all metadata', 1, big, [
      'amend',
      '-f',
      'qcow2',
      '-o',
      'refcount_bits=64',
      out,
    ]),
    bench(1, 1),
    bench(64, 2),
    dd('512', Math.min(64, sizes.plain)),
    dd('1M', sizes.plain / 2),
  ];
  const formats = ['vmdk', 'vdi', 'vpc', 'vhdx', 'qed', 'qcow', 'parallels'].flatMap((format): Timing[] => {
    const source = () => inputs.random();
    return [
      convert(`raw -> ${format}`, 1, () => ['-f', 'raw', '-O', format, source()]),
      convert(`${format} -> raw`, 1, () => {
        const image = inputs.converted(source(), `random.${format}`, '-f', 'raw', '-O', format);
        return ['-f', format, '-O', 'raw', image];
      }),
    ];
  });
  const stream = convert('-> vmdk streamOptimized', 1.5, () => [
    '-f',
    'raw',
    '-O',
    'vmdk',
    '-o',
    'subformat=streamOptimized',
    inputs.text(),
  ]);
  return [...copying, ...inPlace, ...formats, stream];
}

/** `1T` -> `512G`. */
function halfOf(size: string): string {
  const [, count, unit] = /^(\d+)([GT])$/.exec(size)!;
  return unit === 'T' ? `${Number(count) * 512}G` : `${Number(count) * 512}M`;
}
