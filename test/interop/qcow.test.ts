/** qcow (version 1) against the reference: what the conformance suite does not know of. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { golden, ours, theirs, words } from '../golden/harness.js';
import { describeInterop, reference, run } from '../support/reference.js';
import { writeStamped } from '../support/stamped.js';

type Change = readonly [at: number, width: 1 | 4 | 8, value: bigint];

function patched(from: string, to: string, changes: readonly Change[]): void {
  const bytes = readFileSync(from);
  for (const [at, width, value] of changes) {
    if (width === 1) bytes.writeUInt8(Number(value), at);
    else if (width === 4) bytes.writeUInt32BE(Number(value), at);
    else bytes.writeBigUInt64BE(value, at);
  }
  writeFileSync(to, bytes);
}

describeInterop('qcow: as the reference', () => {
  const { folder, same, sameWriting } = golden();
  const img = (line: string) => {
    const done = theirs(words(line), folder);
    if (done.status !== 0) throw new Error(`${line}: ${done.status} ${done.stderr}`);
  };
  const at = (name: string) => join(folder, name);
  writeStamped(at('r.raw'), 3 << 20, 4);
  img('create -q -f qcow plain.qcow 1M');
  img('create -q -f qcow -b r.raw -F raw over.qcow');
  img('convert -O qcow r.raw data.qcow');
  // The reference gives up on some data, without a word.
  ours(words('convert -c -O qcow r.raw packed.qcow'), folder);
  img('create -q --object secret,id=s,data=x -f qcow -o encrypt.format=aes,encrypt.key-secret=s aes.qcow 1M');

  const headers: Readonly<Record<string, readonly Change[]>> = {
    'version2.qcow': [[4, 4, 2n]],
    'nameat.qcow': [
      [8, 8, 2n ** 63n],
      [16, 4, 5n],
    ],
    'odd.qcow': [[24, 8, 1000n]],
    'l1hole.qcow': [[40, 8, 0x100000n]],
  };
  for (const [name, changes] of Object.entries(headers)) {
    patched(at('plain.qcow'), at(name), changes);
    same(`info -f qcow ${name}`);
  }
  for (const command of ['info', 'map']) same(`${command} aes.qcow`);
  same('map --output=json data.qcow');
  same('map --output=json packed.qcow');
  same('create -f qcow -o help');
  for (const line of [
    'create -f qcow -o encryption=on new.qcow 1M',
    'create -f qcow -o encrypt.format=bla new.qcow 1M',
    'resize data.qcow 5M',
    'rebase -u -b other -F raw over.qcow',
  ]) {
    sameWriting(line);
  }
  sameWriting('create -f qcow new.qcow 1000000', 'map new.qcow', 'info new.qcow');
  sameWriting('create -f qcow -b r.raw -F raw new.qcow', 'compare new.qcow r.raw', 'info new.qcow');
  same('compare packed.qcow r.raw');
  sameWriting('commit over.qcow', 'compare over.qcow r.raw', 'info over.qcow');

  it('a write of the reference goes into what we have made, and the other way round', () => {
    expect(ours(words('convert -c -O qcow r.raw mixed.qcow'), folder).stderr).toBe('');
    const io = run(
      reference.qemuIo!,
      words("-f qcow -c 'write -P 1 0 100k' -c 'write -P 2 2000k 10k' mixed.qcow"),
      { cwd: folder },
    );
    expect(io.stderr).toBe('');
    expect(theirs(words('convert -O raw mixed.qcow mixed.raw'), folder).status).toBe(0);
    expect(ours(words('compare mixed.qcow mixed.raw'), folder).status).toBe(0);
    expect(ours(words('convert -n -O qcow r.raw mixed.qcow'), folder).stderr).toBe('');
    expect(theirs(words('compare mixed.qcow r.raw'), folder).stdout).toBe('Images are identical.\n');
  });
});
