/**
 * Every option of every subcommand, and every create option of raw and qcow2, in a command line that both programs run: the
 * same output, the same exit code, and what was written has the same content for the reference. An option that no line here
 * has fails the suite. OPTIONS.md is made of the same lines: `UPDATE_OPTIONS=1 npx vitest run test/interop/options.test.ts`.
 */
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { load, names } from '../../clients/qemu-img/commands/index.js';
import type { OptionDeclaration } from '../../clients/qemu-img/declare.js';
import { getopt } from '../../clients/qemu-img/getopt.js';
import { qcow2 } from '../../src/engine/formats/qcow2/index.js';
import { raw } from '../../src/engine/formats/raw/index.js';
import { splitOptions } from '../../src/protocol/options.js';
import { ours, theirs, words } from '../golden/harness.js';
import { describeInterop, run, tempDir } from '../support/reference.js';

const FIXTURE = `
create -q -f raw r.raw 2M
io -f raw r.raw write -P 5 1M 100k
create -q -f qcow2 a.qcow2 8M
io a.qcow2 write -P 3 1M 3M
snapshot -c s1 a.qcow2
io a.qcow2 write -P 4 6M 300k
create -q -f qcow2 -b a.qcow2 -F qcow2 mid.qcow2
io mid.qcow2 write -P 6 2M 64k
create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2
io top.qcow2 write -P 7 5M 128k
convert -O qcow2 a.qcow2 flat.qcow2
create -q -f qcow2 bm.qcow2 8M
bitmap --add bm.qcow2 b0
bitmap --add --disable bm.qcow2 b1
io bm.qcow2 write -P 9 1M 1M
bitmap --add flat.qcow2 b9
`;

/** A line, and further ones of the reference that show what it has written. `->`: the last is run on both outcomes. */
const LINES: readonly (readonly [string, ...string[]])[] = [
  ['amend -f qcow2 -o compat=0.10 -p a.qcow2', 'check a.qcow2', 'info a.qcow2'],
  ['amend -q -t writethrough --object secret,id=s0,data=x -o lazy_refcounts=on bm.qcow2', 'info bm.qcow2'],
  ['amend --force --image-opts -o size=16M driver=qcow2,file.filename=bm.qcow2', 'info bm.qcow2'],
  ['bench -f qcow2 -t none -c 100 -d 4 -o 1M -s 4k -S 8k -U a.qcow2'],
  ['bench -q -w --pattern 77 --flush-interval 10 --no-drain -c 50 -d 5 -f raw r.raw', 'io r.raw'],
  ['bench --image-opts -i threads -c 10 driver=raw,file.filename=r.raw'],
  ['bench -n -t none -c 10 -f raw r.raw'],
  ['bitmap --add -g 64k -f qcow2 bm.qcow2 b2', 'info bm.qcow2'],
  ['bitmap --remove bm.qcow2 b1', 'info bm.qcow2'],
  ['bitmap --clear --object secret,id=s0,data=x bm.qcow2 b0', 'info bm.qcow2', 'check bm.qcow2'],
  ['bitmap --enable bm.qcow2 b1', 'info bm.qcow2'],
  ['bitmap --disable --image-opts driver=qcow2,file.filename=bm.qcow2 b0', 'info bm.qcow2'],
  ['bitmap --merge b0 -b bm.qcow2 -F qcow2 flat.qcow2 b9', 'info flat.qcow2', 'check flat.qcow2'],
  ['check -q -f qcow2 -T unsafe -U --object secret,id=s0,data=x a.qcow2'],
  ['check -r all --output json a.qcow2'],
  ['check --image-opts driver=qcow2,file.filename=a.qcow2'],
  [
    'commit -q -f qcow2 -t writeback --object secret,id=s0,data=x top.qcow2',
    'check top.qcow2',
    'info mid.qcow2',
  ],
  ['commit -p -d -b a.qcow2 -r 1G top.qcow2', 'info a.qcow2', 'check top.qcow2'],
  ['commit --image-opts driver=qcow2,file.filename=mid.qcow2', 'map --output json a.qcow2'],
  ['compare -p -f qcow2 -F qcow2 -T none a.qcow2 flat.qcow2'],
  ['compare -q -U --object secret,id=s0,data=x a.qcow2 r.raw'],
  ['compare -s a.qcow2 top.qcow2'],
  ['compare --image-opts driver=qcow2,file.filename=a.qcow2 driver=qcow2,file.filename=flat.qcow2'],
  [
    'convert -p -f qcow2 -O qcow2 -T none -t writeback -S 64k -m 4 --object secret,id=s0,data=x a.qcow2 o',
    'check o',
  ],
  ['convert -q -O qcow2 -c -o compression_type=zstd a.qcow2 o', 'check o'],
  ['convert -U -l s1 -O raw a.qcow2 o', 'map -f raw --output json o'],
  ['convert -O qcow2 -B a.qcow2 -F qcow2 top.qcow2 o', 'info o', 'map --output json o'],
  ['convert -n -W -O raw --target-is-zero r.raw r2.raw'],
  [
    'convert --image-opts --target-image-opts -n driver=qcow2,file.filename=flat.qcow2 driver=qcow2,file.filename=bm.qcow2',
    'check bm.qcow2',
  ],
  ['convert -O qcow2 --bitmaps --skip-broken-bitmaps bm.qcow2 o', 'info o', 'check o'],
  ['convert --salvage -r 1G -O raw a.qcow2 o', 'map -f raw --output json o'],
  ['convert -C -f raw -O raw r.raw o'],
  ['create -q -f qcow2 -o size=3M --object secret,id=s0,data=x o', 'info o'],
  ['create -f qcow2 -b a.qcow2 -F qcow2 o 16M', 'info o'],
  ['create -u -f qcow2 -b nothing -F raw o 16M', 'info o'],
  ['create -f raw -o size=3M,preallocation=falloc o', 'map -f raw --output json o'],
  ['create -f raw -o nocow=on,extent_size_hint=1M o 1M'],
  ['create -f qcow2 -o backing_file=a.qcow2,backing_fmt=qcow2,nocow=on,extent_size_hint=2M o', 'info o'],
  [
    'create -f qcow2 -o cluster_size=4k,compat=1.1,lazy_refcounts=on,refcount_bits=8 o 4M',
    'info o',
    'check o',
  ],
  [
    'create -f qcow2 -o extended_l2=on,compression_type=zstd,preallocation=metadata o 4M',
    'info o',
    'check o',
  ],
  ['create -f qcow2 -o data_file=d,data_file_raw=on o 4M', 'info o', 'check o'],
  ['dd -f raw -O qcow2 -U --object secret,id=s0,data=x bs=4k count=300 skip=2 if=r.raw of=o', 'check o'],
  ['dd --image-opts if=driver=qcow2,file.filename=a.qcow2 of=o', 'map -f raw --output json o'],
  ['info -f qcow2 --output json --backing-chain -U --object secret,id=s0,data=x top.qcow2'],
  ['info --image-opts driver=qcow2,file.filename=a.qcow2'],
  ['map -f qcow2 --output json --start-offset 1M --max-length 3M -U --object secret,id=s0,data=x top.qcow2'],
  ['map --image-opts driver=qcow2,file.filename=a.qcow2'],
  [
    'measure -O qcow2 -o cluster_size=4k -f qcow2 -l s1 --output json -U --object secret,id=s0,data=x a.qcow2',
  ],
  ['measure --size 1T -O qcow2'],
  ['measure --image-opts -O raw driver=qcow2,file.filename=a.qcow2'],
  [
    'rebase -p -f qcow2 -t none -T none -F qcow2 -b flat.qcow2 --object secret,id=s0,data=x mid.qcow2',
    'check mid.qcow2',
    'info mid.qcow2',
  ],
  ["rebase -q -c -U -b '' top.qcow2", 'check top.qcow2', 'info top.qcow2'],
  ['rebase -u -F raw -b elsewhere top.qcow2', 'info -U top.qcow2'],
  [
    'rebase --image-opts -F qcow2 -b a.qcow2 driver=qcow2,file.filename=top.qcow2',
    'check top.qcow2',
    'info top.qcow2',
  ],
  [
    'resize -q -f qcow2 --preallocation full --object secret,id=s0,data=x bm.qcow2 +4M',
    'info bm.qcow2',
    'check bm.qcow2',
  ],
  ['resize --shrink -f raw r.raw 1536k', 'map -f raw --output json r.raw'],
  ['resize --image-opts driver=qcow2,file.filename=bm.qcow2 12M', 'info bm.qcow2'],
  ['snapshot -l -U a.qcow2'],
  [
    'snapshot -q -f qcow2 -c s2 --object secret,id=s0,data=x flat.qcow2',
    'check flat.qcow2',
    'convert -l s2 -O raw flat.qcow2 o',
  ],
  ['snapshot -a s1 a.qcow2', 'check a.qcow2', 'map --output json a.qcow2'],
  ['snapshot --image-opts -d s1 driver=qcow2,file.filename=a.qcow2', 'check a.qcow2', 'info a.qcow2'],
];

const STANDARD: readonly (readonly [string, ...string[]])[] = [['-T events=/dev/null info r.raw']];

/** Created images that hold secrets are refused so far: no line can be the same as the reference's. */
const NOT_YET = /^encrypt/;

/** What is free to differ: times, and where in its file each program puts what it adds. */
function comparable(text: string): string {
  return text
    .replace(/( {4}\(\d+\.\d\d\/100%\)\r)+/g, '(progress)\r')
    .replace(/in \d+\.\d+ seconds/, 'in some seconds')
    .replace(/^( *)(disk size|file length|Image end offset): .*$/gm, '$1$2: some')
    .replace(/[\d.]+% fragmented/, 'some fragmented');
}

interface Reached {
  readonly command: string;
  readonly option: string;
  readonly line: string;
}

async function reachedOptions(): Promise<{ reached: Reached[]; missing: string[] }> {
  const reached: Reached[] = [];
  const missing: string[] = [];
  const created = new Map<string, string>();
  for (const name of names) {
    const declaration = (await load(name))!;
    const lines = LINES.map(([line]) => line).filter((line) => line.startsWith(`${name} `));
    const parsed = lines.map((line) => ({
      line,
      ...getopt(name, words(line).slice(1), declaration.options, false, declaration.negativeNumbers),
    }));
    for (const [key, option] of Object.entries(declaration.options)) {
      if (key === 'help') continue;
      const found = parsed.find(({ values }) => values[key] !== undefined);
      if (found === undefined) missing.push(`${name} ${shown(option)}`);
      else reached.push({ command: name, option: shown(option), line: found.line });
    }
    if (name !== 'create') continue;
    for (const { line, values } of parsed) {
      const given = values.options as unknown as readonly string[] | undefined;
      for (const [option] of splitOptions(given?.join(',') ?? '')) {
        created.set(`${String(values.format)} ${option}`, line);
      }
    }
  }
  for (const driver of [raw, qcow2]) {
    for (const { name } of driver.createOptions) {
      const line = created.get(`${driver.name} ${name}`);
      if (line !== undefined) reached.push({ command: `-f ${driver.name} -o`, option: name, line });
      else if (!NOT_YET.test(name)) missing.push(`-f ${driver.name} -o ${name}`);
    }
  }
  return { reached, missing };
}

function shown({ short, long, spelled }: OptionDeclaration): string {
  const name = long?.[0] ?? spelled?.[0];
  return [short && `-${short}`, name && `--${name}`].filter(Boolean).join(', ');
}

it('reaches every option of every subcommand', async () => {
  const { missing } = await reachedOptions();
  expect(missing).toEqual([]);
});

it('OPTIONS.md says so', async () => {
  const { reached } = await reachedOptions();
  const path = join(import.meta.dirname, 'OPTIONS.md');
  const rows = reached.map(({ command, option, line }) => `| ${command} | ${option} | \`${line}\` |`);
  const text = `# Options and the command line that compares each with the reference\n\nMade by options.test.ts.\n\n| command | option | line |\n|---|---|---|\n${rows.join('\n')}\n`;
  if (process.env.UPDATE_OPTIONS === '1') writeFileSync(path, text);
  expect(readFileSync(path, 'utf8')).toBe(text);
});

describeInterop('every option, as the reference', () => {
  const root = tempDir();
  const fixture = join(root, 'fixture');

  beforeAll(() => {
    mkdirSync(fixture);
    for (const line of FIXTURE.trim().split('\n')) {
      const [first, ...args] = words(line);
      // `io [-f FORMAT] IMAGE COMMAND...`
      if (first === 'io') {
        const image = args[0] === '-f' ? 3 : 1;
        run('qemu-io', [...args.slice(0, image), '-c', args.slice(image).join(' ')], { cwd: fixture });
      } else expect(run('qemu-img', [first!, ...args], { cwd: fixture }).status).toBe(0);
    }
    cpSync(join(fixture, 'r.raw'), join(fixture, 'r2.raw'));
  });

  let count = 0;
  for (const [line, ...after] of [...LINES, ...STANDARD]) {
    it(`qemu-img ${line}`, () => {
      const folders = ['ours', 'theirs'].map((who) => {
        const folder = join(root, `${who}-${count}`);
        cpSync(fixture, folder, { recursive: true });
        return folder;
      });
      count += 1;
      const [a, b] = folders as [string, string];
      const both = [ours(words(line), a), theirs(words(line), b)].map((result) => ({
        status: result.status,
        stdout: comparable(result.stdout),
        stderr: comparable(result.stderr),
      }));
      expect(both[0]).toEqual(both[1]);
      expect(both[0]!.status).toBe(line.startsWith('compare -s') || line.startsWith('compare -q') ? 1 : 0);
      expect(readdirSync(a).sort()).toEqual(readdirSync(b).sort());
      for (const next of after) {
        if (next.startsWith('io ')) continue;
        const [x, y] = [theirs(words(next), a), theirs(words(next), b)];
        expect(comparable(x.stdout + x.stderr)).toBe(comparable(y.stdout + y.stderr));
      }
      // Guest content, all the way down each chain.
      for (const name of readdirSync(a)) {
        const left = theirs(['compare', '-U', name, join(b, name)], a);
        if (left.status !== 0)
          expect({ name, ...left }).toEqual({ name, ...theirs(['compare', '-U', name, name], b) });
      }
      for (const folder of folders) rmSync(folder, { recursive: true });
    });
  }
});
