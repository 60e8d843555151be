/** What is allocated and what is not, down to sectors and subclusters: as the reference has it, in the image and in what `map` says. */
import { statSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { describeInterop, reference, run } from '../support/reference.js';
import { golden, ours, theirs, words } from './harness.js';

describeInterop('sparseness', () => {
  const { folder, same, sameWriting } = golden();
  const good = (program: string, ...args: string[]) =>
    expect(run(program, args, { cwd: folder })).toMatchObject({ status: 0 });
  const create = (...args: string[]) => good(reference.qemuImg!, 'create', '-q', '-f', 'qcow2', ...args);
  const write = (name: string, ...commands: string[]) =>
    good(reference.qemuIo!, ...commands.flatMap((command) => ['-c', command]), name);
  const mapOf = (name: string) => `map --output=json ${name}`;
  /** How much data there is, wherever it lies. */
  const dataOf = (name: string) => `measure -O qcow2 -o cluster_size=512 ${name}`;

  // Zeros that the source tells are left out to the sector, those in its data in steps of 4 KiB.
  create('-o', 'cluster_size=512', 'fine', '1M');
  write(
    'fine',
    'write -P 1 0 64k',
    'write -z 10k 1k',
    'write -z 30k 512',
    'write -P 0 40k 1k',
    'write -P 0 44k 4k',
  );
  write('fine', 'write -P 2 512k 512', 'write -P 2 514k 512', 'write -P 2 700000 10000');
  for (const options of ['cluster_size=512', 'cluster_size=1k', 'extended_l2=on', 'cluster_size=64k']) {
    sameWriting(`convert -O qcow2 -o ${options} fine o`, dataOf('o'), 'compare fine o');
  }
  sameWriting('convert -O qcow2 -o cluster_size=512 -S 8k fine o', dataOf('o'));
  sameWriting('convert -O qcow2 -o extended_l2=on -S 64k fine o', dataOf('o'));

  // A place that subclusters share is told where the backing file has ended, too.
  create('short', '1M');
  create('-o', 'extended_l2=on', '-b', 'short', '-F', 'qcow2', 'middle', '4M');
  create('-o', 'extended_l2=on', '-b', 'middle', '-F', 'qcow2', 'top', '8M');
  write('middle', 'write -P 1 1020k 10k', 'write -P 1 3M 1k', 'write -P 3 4095k 1k');
  write('top', 'write -P 2 2000k 10k', 'write -P 1 5100k 1k', 'write -P 1 6M 1k');
  for (const name of ['middle', 'top']) {
    same(`map ${name}`);
    same(mapOf(name));
  }

  // Zeros for a part of a cluster that reads as zeros anyway take no data.
  create('empty', '4M');
  good(reference.qemuImg!, 'create', '-q', '-f', 'raw', 'bytes.raw', '512');
  truncateSync(join(folder, 'bytes.raw'), 100);
  for (const more of ['', '-c']) {
    sameWriting(
      `convert -n -f raw -O qcow2 ${more} bytes.raw empty`.replace('  ', ' '),
      mapOf('empty'),
      'check empty',
    );
  }

  // A host allocates part of a cluster: whether the whole counts decides whether holes are looked for.
  for (const size of ['511', '65537', '1M']) {
    create('-o', 'preallocation=metadata', `p${size}`, size);
    same(mapOf(`p${size}`));
    write(`p${size}`, 'write -P 1 0 512');
    same(`map p${size}`);
  }
  create('-o', 'preallocation=metadata,cluster_size=512', 'p512', '16k');
  write('p512', 'write -P 1 0 12k');
  same(mapOf('p512'));

  // A size among the options is looked at, and has no effect.
  for (const size of ['5M', '512', 'x']) {
    for (const format of ['qcow2', 'raw', 'vmdk']) sameWriting(`convert -O ${format} -o size=${size} fine o`);
    sameWriting(`convert -O qcow2 -o size=${size} fine o`, mapOf('o'));
  }

  // A format of which no more is told than that it has data.
  good(reference.qemuImg!, 'convert', '-O', 'vhdx', 'fine', 'opaque');
  same('compare -s fine opaque');
  same('compare -s opaque opaque');

  it('a compressed image ends with a sector', () => {
    const lengths = [theirs, ours].map((program) => {
      expect(program(['convert', '-c', '-O', 'qcow2', 'fine', 'packed'], folder).status).toBe(0);
      return statSync(join(folder, 'packed')).size;
    });
    expect(lengths[1]).toBe(lengths[0]);
  });

  it('the data file of an image with subclusters is no longer than their last', () => {
    const made = 'create -f qcow2 -o extended_l2=on,data_file=d,data_file_raw=on dd 100k';
    const grown = ['', '--preallocation=metadata ', '--preallocation=falloc '].map(
      (how) => `resize ${how}dd 110k`,
    );
    for (const steps of [[made], ...grown.map((growing) => [made, growing])]) {
      const lengths = [theirs, ours].map((program) => {
        for (const step of steps) expect(program(words(step), folder).status).toBe(0);
        return statSync(join(folder, 'd')).size;
      });
      expect(lengths[1]).toBe(lengths[0]);
    }
  });
});
