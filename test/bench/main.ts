/**
 * `npm run bench [-- --only WORD] [-- --pairs N] [-- --size MIB] [-- --short] [-- --minutes N]`: time of the reference / time of ours, whole process,
 * client start included, images in the page cache. Needs the reference; without it, it says so and ends.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { cases } from './cases.js';
import { daemonCases } from './daemon.js';
import { compare, printRow } from './harness.js';
import { Inputs, type Sizes } from './inputs.js';
import { loadCases } from './load.js';

const { values } = parseArgs({
  options: {
    only: { type: 'string', default: '' },
    pairs: { type: 'string', default: '5' },
    size: { type: 'string', default: '2048' },
    /** Small images, one pair: shows that the bench works, not how fast anything is. */
    short: { type: 'boolean', default: false },
    /** How long the daemon's memory is watched under mixed load. */
    minutes: { type: 'string', default: '1' },
  },
});
const pairs = values.short ? 1 : Number(values.pairs);
const sizes: Sizes = values.short
  ? { plain: 32, compressed: 16, scatteredClusters: 500, metadata: '16G', requests: 500 }
  : {
      plain: Number(values.size),
      compressed: 1024,
      scatteredClusters: 30_000,
      metadata: '1T',
      requests: 75_000,
    };

const dist = fileURLToPath(new URL('../../', import.meta.url));
const client = [process.execPath, join(dist, 'clients/qemu-img/main.js'), '--connect', 'none'];
const folder = mkdtempSync(join(tmpdir(), 'imgd-bench-'));
const wanted = (name: string) => name.includes(values.only);

async function main(): Promise<void> {
  try {
    execFileSync('qemu-img', ['--version'], { stdio: 'ignore' });
  } catch {
    process.stdout.write('bench: SKIPPED, no reference qemu-img in PATH\n');
    return;
  }
  process.stdout.write(
    `median of ${pairs} paired runs; images of ${sizes.plain} MiB (compressed: ${sizes.compressed} MiB, ` +
      `metadata: ${sizes.metadata}); Node.js ${process.version}\n`,
  );
  const inputs = new Inputs(folder, sizes);
  for (const timing of cases(inputs)) {
    if (!wanted(timing.name)) continue;
    const args = timing.args();
    const { name, goal, reset } = timing;
    printRow(
      await compare(
        {
          name,
          goal,
          reference: ['qemu-img', ...args],
          ours: [...client, ...args],
          ...(reset === undefined ? {} : { reset }),
        },
        pairs,
      ),
    );
    rmSync(inputs.out, { force: true });
  }
  await daemonCases({ dist, folder, pairs, wanted });
}

try {
  await main();
  await loadCases({ dist, folder, wanted, short: values.short, minutes: Number(values.minutes) });
} finally {
  rmSync(folder, { recursive: true, force: true });
}
