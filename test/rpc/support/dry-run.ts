/** Images to try operations on, and dry runs that are seen to change none of them. */
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { reference, run, tempDir } from '../../support/reference.js';
import { type Answer, Peer, type RunningDaemon, startDaemon } from './daemon.js';

export const MiB = 1024 * 1024;

export interface Plan {
  readonly ok: boolean;
  readonly checks: { name: string; status: string; kind?: string; text?: string }[];
  readonly required?: number;
  readonly free?: number;
}

export const failures = ({ checks }: Plan) => checks.filter(({ status }) => status === 'failed');
export const names = ({ checks }: Plan) => checks.map(({ name }) => name).join(' ');

export const qcow2 = (filename: string) => ({ filename, format: 'qcow2' });
export const raw = (filename: string) => ({ filename, format: 'raw' });

export const img = (...args: string[]) => {
  const { status, stderr } = run(reference.qemuImg!, args);
  if (status !== 0) throw new Error(`${args.join(' ')}: ${stderr}`);
};
export const io = (file: string, ...commands: string[]) =>
  run(reference.qemuIo!, ['-f', 'qcow2', ...commands.flatMap((command) => ['-c', command]), file]);

export class Scene {
  readonly folder = tempDir();
  /** Of the present case: a folder with a copy of the images. */
  cwd = '';
  peer!: Peer;
  #daemon: RunningDaemon | undefined;
  #cases = 0;

  async start(...flags: string[]): Promise<void> {
    this.#daemon = await startDaemon(join(this.folder, 'd.sock'), flags, { real: true });
    this.peer = await Peer.connect(this.#daemon.socket);
  }

  end(): void {
    this.#daemon?.process.kill('SIGKILL');
  }

  at(name: string): string {
    return join(this.cwd, name);
  }

  fresh(): void {
    const seed = join(this.folder, 'seed');
    if (!existsSync(seed)) makeImages(seed);
    this.cwd = join(this.folder, `case${++this.#cases}`);
    mkdirSync(this.cwd);
    run('cp', ['-r', '--sparse=always', `${seed}/.`, this.cwd]);
    // Until then the host has not counted all that it takes.
    for (const name of readdirSync(this.cwd)) {
      const file = openSync(this.at(name), 'r+');
      fsyncSync(file);
      closeSync(file);
    }
  }

  /** All that the files are, but for the time of their last reading. */
  state(): unknown {
    return readdirSync(this.cwd)
      .sort()
      .map((name) => {
        const { size, mtimeNs, ctimeNs, blocks, ino } = statSync(this.at(name), { bigint: true });
        return [name, size, mtimeNs, ctimeNs, blocks, ino, readFileSync(this.at(name)).toString('latin1')];
      });
  }

  allocated(): number {
    return readdirSync(this.cwd).reduce((sum, name) => sum + statSync(this.at(name)).blocks * 512, 0);
  }

  call(method: string, params: object): Promise<Answer> {
    return this.peer.call(method, { cwd: this.cwd, ...params });
  }

  /** The result of the dry run. */
  async dry(method: string, params: object): Promise<{ readonly plan: Plan }> {
    const before = this.state();
    const answer = await this.call(method, { ...params, 'dry-run': true });
    expect(this.state()).toEqual(before);
    expect(answer.error).toBeUndefined();
    return answer.result;
  }

  /** The operation, after its dry run, goes as that says: in the words of the first failure, or with no more space than told. */
  async agree(method: string, params: object): Promise<Plan> {
    const { plan } = await this.dry(method, params);
    const before = this.allocated();
    const done = await this.call(method, params);
    const [first] = failures(plan);
    const label = `${method} ${JSON.stringify(params)}: ${JSON.stringify(plan)}`;
    if (first === undefined) {
      expect(done.error, label).toBeUndefined();
      expect(plan.ok).toBe(true);
      if (plan.required !== undefined)
        expect(this.allocated() - before, label).toBeLessThanOrEqual(plan.required);
    } else {
      expect(plan.ok).toBe(false);
      expect(done.error?.message, label).toBe(first.text);
      expect(done.error?.data).toMatchObject({ kind: first.kind });
    }
    return plan;
  }
}

function makeImages(seed: string): void {
  mkdirSync(seed);
  const at = (name: string) => join(seed, name);
  const make = (name: string, size: string, ...more: string[]) =>
    img('create', '-q', '-f', 'qcow2', ...more, at(name), size);
  const over = (name: string) => ['-b', name, '-F', 'qcow2'];
  make('base.qcow2', '16M');
  io(at('base.qcow2'), 'write -q -P 1 0 4M');
  make('other.qcow2', '16M');
  io(at('other.qcow2'), 'write -q -P 1 0 2M', 'write -q -P 2 8M 3M');
  img('bitmap', '--add', at('other.qcow2'), 'o');
  make('top.qcow2', '16M', ...over('base.qcow2'));
  io(at('top.qcow2'), 'write -q -P 3 2M 1M', 'write -q -P 3 8M 64k', 'write -q -z 1M 1M');
  make('longer.qcow2', '32M', ...over('base.qcow2'));
  io(at('longer.qcow2'), 'write -q -P 4 24M 1M');
  make('kept.qcow2', '16M');
  io(at('kept.qcow2'), 'write -q -P 5 0 1M');
  img('snapshot', '-c', 'old', at('kept.qcow2'));
  io(at('kept.qcow2'), 'write -q -P 6 0 2M');
  make('marked.qcow2', '16M');
  img('snapshot', '-c', 's', at('marked.qcow2'));
  img('bitmap', '--add', at('marked.qcow2'), 'm');
  make('held.qcow2', '16M');
  make('over-held.qcow2', '16M', ...over('held.qcow2'));
  writeFileSync(at('plain.raw'), Buffer.alloc(4 * MiB, 7));
  const window = `json:{"driver":"raw","size":"${MiB}","file":{"driver":"file","filename":"plain.raw"}}`;
  run(
    reference.qemuImg!,
    ['create', '-q', '-f', 'qcow2', '-u', '-b', window, '-F', 'raw', 'over-window.qcow2', '16M'],
    { cwd: seed },
  );
  leak(at('leaky.qcow2'));
  dirty(at('dirty.qcow2'));
}

/** Marked as not closed, with a refcount that was not written. */
function dirty(path: string): void {
  img('create', '-q', '-f', 'qcow2', '-o', 'lazy_refcounts=on', path, '16M');
  io(path, 'write -q 0 1M');
  const bytes = readFileSync(path);
  bytes.writeBigUInt64BE(bytes.readBigUInt64BE(72) | 1n, 72);
  const table = Number(bytes.readBigUInt64BE(48));
  const block = Number(bytes.readBigUInt64BE(table));
  bytes.writeUInt16BE(0, block + 2 * (bytes.length / 65536 - 1));
  writeFileSync(path, bytes);
}

/** A cluster at the end that is counted and that nobody refers to. */
function leak(path: string): void {
  img('create', '-q', '-f', 'qcow2', path, '16M');
  io(path, 'write -q 0 1M');
  const bytes = readFileSync(path);
  const table = Number(bytes.readBigUInt64BE(48));
  const block = Number(bytes.readBigUInt64BE(table));
  bytes.writeUInt16BE(1, block + 2 * (bytes.length / 65536));
  writeFileSync(path, Buffer.concat([bytes, Buffer.alloc(65536)]));
}
