/** Many quick queries at once are answered as one after another in this process are. */
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { runOperation } from '../../src/engine/index.js';
import { openFile } from '../../src/engine/storage/file.js';
import { permissionsFor } from '../../src/engine/storage/permissions.js';
import { tempDir } from '../support/reference.js';
import { Peer, startDaemon } from './support/daemon.js';

const folder = tempDir();
const at = (name: string) => join(folder, name);

interface Answer {
  readonly result?: unknown;
  readonly kind?: string;
  readonly message?: string;
}

async function here(
  operation: 'image-create' | 'image-info' | 'image-inspect',
  params: object,
): Promise<Answer> {
  const result = await runOperation(operation, params, {
    ...{ cwd: folder, policy: {}, signal: new AbortController().signal, setRate() {} },
    ...{ progress() {}, pace: () => undefined, output() {} },
  });
  return result.isOk()
    ? { result: JSON.parse(JSON.stringify(result.value)) }
    : { kind: result.error.kind, message: result.error.message };
}

it('many at once, of all kinds, and of what cannot be opened', async () => {
  const formats = ['raw', 'qcow2', 'vmdk', 'vdi', 'vhdx', 'vpc', 'qed', 'qcow', 'parallels'];
  for (const format of formats) {
    await here('image-create', { filename: at(`a.${format}`), format, size: 16 << 20 });
  }
  const backed = { backing: at('a.qcow2'), 'backing-format': 'qcow2' };
  await here('image-create', { filename: at('b.qcow2'), format: 'qcow2', ...backed });
  writeFileSync(at('empty'), '');
  writeFileSync(at('short.qcow2'), Buffer.from('QFI\xfb\0\0\0\x03', 'latin1'));
  mkdirSync(at('folder'));
  symlinkSync(at('nowhere'), at('dangling'));
  const locks = permissionsFor({ role: 'format-metadata', writable: true });
  const user = await openFile({ path: at('a.vdi'), writable: true, locks });
  const names = [
    ...formats.map((format) => `a.${format}`),
    ...['b.qcow2', 'empty', 'short.qcow2', 'folder', 'dangling', 'none'],
  ];
  const queries = names.flatMap((name) => [
    ['image-info', { image: { filename: at(name) }, 'backing-chain': true }] as const,
    ['image-inspect', { filename: at(name) }] as const,
  ]);
  const expected: Answer[] = [];
  for (const [operation, params] of queries) expected.push(await here(operation, params));
  // One that is in use was there, and ones of both outcomes.
  expect(expected.filter(({ kind }) => kind === 'locked').length).toBeGreaterThan(0);
  expect(expected.filter(({ kind }) => kind === undefined).length).toBeGreaterThan(20);

  const running = await startDaemon(at('s'), [], { real: true });
  const peers = await Promise.all(Array.from({ length: 4 }, () => Peer.connect(at('s'))));
  const rounds = 8;
  const answers = await Promise.all(
    Array.from({ length: rounds * queries.length }, async (_, n) => {
      const [operation, params] = queries[n % queries.length]!;
      const { result, error } = await peers[n % peers.length]!.call(operation, params);
      return error === undefined
        ? { result }
        : { kind: (error.data as { kind: string }).kind, message: error.message };
    }),
  );
  expect(answers).toEqual(Array.from({ length: rounds }, () => expected).flat());
  await user.close();
  running.process.kill('SIGTERM');
  expect(await running.exited).toBe(0);
});
