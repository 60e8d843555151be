/** QED against the reference: what the conformance suite does not know of. */
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { golden, ours, theirs, words } from '../golden/harness.js';
import { describeInterop, reference, run } from '../support/reference.js';
import { writeStamped } from '../support/stamped.js';

type Change = readonly [at: number, width: 4 | 8, value: bigint];

function patched(from: string, to: string, changes: readonly Change[]): void {
  const bytes = readFileSync(from);
  for (const [at, width, value] of changes) {
    if (width === 4) bytes.writeUInt32LE(Number(value), at);
    else bytes.writeBigUInt64LE(value, at);
  }
  writeFileSync(to, bytes);
}

describeInterop('qed: as the reference', () => {
  const { folder, same, sameWriting } = golden();
  const img = (line: string) => {
    const done = theirs(words(line), folder);
    if (done.status !== 0) throw new Error(done.stderr);
  };
  const at = (name: string) => join(folder, name);
  writeStamped(at('r.raw'), 3 << 20, 4);
  img('create -q -f qed plain.qed 1M');
  img('create -q -f qed -b r.raw -F raw over.qed');
  img('create -q -f qed -b r.raw -F raw shorter.qed 1M');
  img('convert -O qed -o cluster_size=4k,table_size=2 r.raw data.qed');
  const l2 = readFileSync(at('data.qed')).readBigUInt64LE(4096);

  const headers: Readonly<Record<string, readonly Change[]>> = {
    'onetable.qed': [[8, 4, 1n]],
    'needcheck.qed': [[16, 8, 2n]],
    'l1.qed': [[40, 8, 65537n]],
  };
  for (const [name, changes] of Object.entries(headers)) {
    patched(at('plain.qed'), at(name), changes);
    same(`info -f qed ${name}`);
  }
  same('map --output=json data.qed');

  const damage: Readonly<Record<string, readonly Change[]>> = {
    'many.qed': [
      [Number(l2), 8, 5n],
      [Number(l2) + 8, 8, 0x20000000n],
      [16, 8, 2n],
      [4096 + 8, 8, 0x20000000n],
    ],
  };
  for (const [name, changes] of Object.entries(damage)) {
    patched(at('data.qed'), at(name), changes);
    same(`check --output=json ${name}`);
    same(`convert -O raw ${name} out.raw`);
    sameWriting(`check -r all --output=json ${name}`, `info ${name}`, `compare ${name} r.raw`);
  }
  copyFileSync(at('data.qed'), at('cut.qed'));
  writeFileSync(at('cut.qed'), readFileSync(at('data.qed')).subarray(0, 20_000));
  same('check cut.qed');

  for (const line of [
    'create -f qed -o table_size=3 new.qed 1M',
    'create -f qed -o preallocation=full,extent_size_hint=5 new.qed 1M',
  ]) {
    sameWriting(line);
  }
  sameWriting('create -f qed new.qed 1000000', 'check new.qed', 'map new.qed');
  sameWriting('create -f qed -b r.raw -F raw new.qed', 'check new.qed', 'compare new.qed r.raw');
  sameWriting('rebase -u -b other -F qcow2 over.qed', 'info -U over.qed --output=json');
  sameWriting("rebase -u -b '' over.qed", 'check over.qed', 'map over.qed');
  sameWriting('resize plain.qed 5G', 'info plain.qed', 'check plain.qed');
  sameWriting('resize shorter.qed 2M');
  sameWriting('commit over.qed', 'compare over.qed r.raw');
  same('create -f qed -o help');

  it('a write of the reference goes into what we have made, and the other way round', () => {
    const done = ours(words('create -f qed -o cluster_size=4k,table_size=2 mixed.qed 9M'), folder);
    expect(done.status).toBe(0);
    const io = run(
      reference.qemuIo!,
      words("-f qed -c 'write -P 1 0 100k' -c 'write -P 2 5000k 10k' -c 'write -z 40k 20k' mixed.qed"),
      { cwd: folder },
    );
    expect(io.stderr).toBe('');
    expect(ours(words('convert -n -O qed r.raw mixed.qed'), folder).stderr).toBe('');
    expect(theirs(words('check mixed.qed'), folder).status).toBe(0);
    expect(ours(words('check mixed.qed'), folder)).toEqual(theirs(words('check mixed.qed'), folder));
    expect(theirs(words('convert -O raw mixed.qed mixed.raw'), folder).status).toBe(0);
    const content = readFileSync(at('mixed.raw'));
    expect(Buffer.compare(content.subarray(0, 3 << 20), readFileSync(at('r.raw')))).toBe(0);
    expect(content[5000 * 1024]).toBe(2);
  });
});
