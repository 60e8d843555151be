import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ImageError } from '../../src/engine/error.js';
import { raw } from '../../src/engine/formats/raw/index.js';
import { BlkdebugStorage } from '../../src/engine/node/filters/blkdebug.js';
import { rulesFromText } from '../../src/engine/node/filters/blkdebug-config.js';
import { Rules } from '../../src/engine/node/filters/blkdebug-rules.js';
import { ImageNode } from '../../src/engine/node/image.js';
import { NodeStorage } from '../../src/engine/node/node-storage.js';
import { openImage } from '../../src/engine/node/open.js';
import { flatFromFilename } from '../../src/engine/node/open-storage.js';
import { convert } from '../../src/engine/operations/convert.js';
import { create } from '../../src/engine/operations/create.js';
import { info } from '../../src/engine/operations/info.js';
import { MemoryStorage } from '../../src/engine/storage/memory.js';
import { perform } from '../support/operations.js';
import { tempDir } from '../support/reference.js';

const KiB = 1024;
const folder = tempDir();
const at = (name: string) => join(folder, name);
const json = (options: object) => `json:${JSON.stringify(options)}`;
const file = (name: string) => ({ driver: 'file', filename: name });

function pattern(length: number): Buffer {
  return Buffer.from(Array.from({ length }, (_, index) => 1 + (index % 251)));
}

async function errorOf(work: Promise<unknown>): Promise<ImageError> {
  const error = await work.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(ImageError);
  return error as ImageError;
}

const NO_LIMITS = {
  align: 0,
  maxTransfer: 0,
  optWriteZero: 0,
  maxWriteZero: 0,
  optDiscard: 0,
  maxDiscard: 0,
};

describe('blkdebug rules', () => {
  it('an event replaces what was injected before, and states select rules', () => {
    const rules = new Rules();
    rules.add('set-state', { event: 'read_aio', state: 1, new_state: 2 });
    rules.add('inject-error', { event: 'read_aio', state: 2, errno: 28 });
    rules.add('inject-error', { event: 'none', iotype: 'discard' });
    rules.fire('none');
    expect(rules.failure('discard', 0, 512)).toBe(5);
    rules.fire('read_aio');
    expect(rules.failure('read', 0, 512)).toBeUndefined();
    expect(rules.failure('discard', 0, 512)).toBe(5);
    rules.fire('read_aio');
    expect(rules.failure('read', 0, 512)).toBe(28);
    expect(rules.failure('discard', 0, 512)).toBe(28);
    expect(rules.failure('block-status', 0, 512)).toBeUndefined();
  });

  it('a sector is hit by requests that hold its first byte; once is once', () => {
    const rules = new Rules();
    rules.add('inject-error', { event: 'none', sector: 3, once: true });
    rules.fire('none');
    expect(rules.failure('read', 0, 3 * 512)).toBeUndefined();
    expect(rules.failure('read', 3 * 512 + 1, 512)).toBeUndefined();
    expect(rules.failure('flush', 0, 0)).toBeUndefined();
    expect(rules.failure('write', 0, 3 * 512 + 1)).toBe(5);
    expect(rules.failure('write', 0, 3 * 512 + 1)).toBeUndefined();
  });

  it('rule files: sections, comments, quotes', () => {
    const rules = new Rules();
    rulesFromText('# rules\n\n[inject-error "a"]\n event = "none"\n errno ="28"\n once ="off"\n', rules);
    rules.fire('none');
    expect(rules.failure('read', 0, 1)).toBe(28);
    for (const [text, message] of [
      ['event = "none"', 'no group defined'],
      ['[nonsense]', "There is no option group 'nonsense'"],
      ['[set-state]\nfoo = "1"', "Invalid parameter 'foo'"],
      ['[set-state]\nevent = none', 'invalid parameter value: '],
      ['[set-state]\nstate = "x"', "Parameter 'state' expects a number"],
      ['[inject-error]\n', 'Missing event name for rule'],
    ] as const) {
      expect(() => rulesFromText(text, new Rules())).toThrow(message);
    }
  });
});

describe('a blkdebug storage', () => {
  it('splits, and does what does not fit whole units otherwise', async () => {
    const below = new MemoryStorage();
    const seen: string[] = [];
    const watched = new Proxy(below, {
      get(target, key) {
        const value = Reflect.get(target, key, target) as unknown;
        if (typeof value !== 'function') return value;
        return (...args: never[]) => {
          if (['read', 'write', 'zero', 'discard'].includes(String(key))) seen.push(String(key));
          return value.apply(target, args) as unknown;
        };
      },
    });
    const limits = {
      ...NO_LIMITS,
      maxTransfer: 1024,
      optWriteZero: 1024,
      maxWriteZero: 2048,
      optDiscard: 4096,
    };
    const storage = new BlkdebugStorage('x', watched, new Rules(), limits);
    const data = pattern(2500);
    await storage.write(0, data);
    expect(seen.splice(0)).toEqual(['write', 'write', 'write']);
    const back = Buffer.alloc(2500);
    await storage.read(0, back);
    expect(back.equals(data)).toBe(true);
    expect(seen.splice(0)).toEqual(['read', 'read', 'read']);
    await storage.zero({ at: 100, length: 5000 });
    expect(seen.splice(0)).toEqual(['write', 'zero', 'zero', 'write']);
    await storage.discard({ at: 1, length: 8000 });
    expect(seen.splice(0)).toEqual([]);
    await storage.read(0, back);
    expect(back.subarray(0, 100).equals(data.subarray(0, 100))).toBe(true);
    expect(back.subarray(100).every((byte) => byte === 0)).toBe(true);
  });
});

describe('an image as a storage', () => {
  async function overRaw(size: number): Promise<NodeStorage> {
    const memory = new MemoryStorage();
    await memory.truncate(size);
    const format = await raw.open({
      file: memory,
      writable: true,
      options: {},
      forCheck: false,
      metadataOnly: false,
      openChild: async () => undefined,
      warn: () => {},
    });
    const parts = { filename: 'm', path: undefined, driver: raw, format, file: memory };
    return new NodeStorage(new ImageNode({ ...parts, backing: undefined, writable: true }));
  }

  it('reads zeros past its end, and grows by sectors under writes in any order', async () => {
    const storage = await overRaw(1024);
    const data = pattern(600);
    await Promise.all([storage.write(5000, data), storage.write(1000, data), storage.write(3000, data)]);
    expect(storage.size).toBe(6144 - 512);
    const back = Buffer.alloc(2000, 9);
    await storage.read(5000, back);
    expect(back.subarray(0, 600).equals(data)).toBe(true);
    expect(back.subarray(600).every((byte) => byte === 0)).toBe(true);
    expect(await storage.extent({ at: 10_000, length: 5 })).toEqual({ data: false, length: 5 });
    await storage.close();
  });
});

describe('filters opened by options', () => {
  const open = (image: string, writable = false) =>
    perform(
      async (_: object, context) => {
        const node = await openImage({ 'image-opts': image }, { writable }, context);
        await node.close();
      },
      {},
      folder,
    );

  it('fail with clear errors', async () => {
    writeFileSync(at('a.raw'), pattern(64 * KiB));
    const on = 'driver=blkdebug,image.filename=a.raw';
    for (const [options, message] of [
      ['driver=blkdebug', 'A block device must be specified for "image"'],
      [`${on},align=3`, 'Cannot meet constraints with align 3'],
      [`${on},max-transfer=4G`, 'Cannot meet constraints with max-transfer 4294967296'],
      [`${on},inject-error.0.event=x`, 'invalid parameter value: x'],
      [`${on},inject-error.0.errno=5`, 'Missing event name for rule'],
      [`${on},inject-error.x`, "[inject-error] section doesn't support the option ''"],
      [`${on},set-state.0.foo=5`, "[set-state] section doesn't support the option 'foo'"],
      [`${on},foo=5`, "Block protocol 'blkdebug' doesn't support the option 'foo'"],
      [`${on},config=none`, 'Could not read blkdebug config file: No such file or directory'],
      ['driver=quorum,vote-threshold=1', 'Number of provided children must be 1 or more'],
      ['driver=quorum,vote-threshold=1,children.1.filename=a.raw', 'Option children is not a valid array'],
      ['driver=compress,file.filename=a.raw', 'Compression is not supported for underlying format: file'],
      ['driver=copy-on-read,file.filename=a.raw', 'Block node is read-only'],
      ['driver=throttle,file.filename=a.raw', 'Please specify a throttle group'],
      ['driver=blkverify,raw.filename=a.raw', 'A block device must be specified for "test"'],
    ] as const) {
      const { error } = await open(options);
      expect(error?.message, options).toBe(`Could not open '${options}': ${message}`);
    }
  });

  it('names in filenames: nested, too deeply nested, incomplete', () => {
    const nested = flatFromFilename('blkdebug:c:blkdebug::a.raw');
    expect(Object.fromEntries(nested.entries())).toEqual({
      'file.driver': 'blkdebug',
      'file.config': 'c',
      'file.image.driver': 'blkdebug',
      'file.image.image.filename': 'a.raw',
    });
    expect(() => flatFromFilename(`${'blkdebug::'.repeat(100_000)}a`)).toThrow('too many filters');
    expect(() => flatFromFilename('blkdebug:a')).toThrow('requires both');
  });

  it('a deep tree of filters ends, and leaves no file open', async () => {
    const { error } = await open(
      `driver=raw${Array.from({ length: 40 }, (_, i) => `,${'file.'.repeat(i + 1)}driver=raw`).join('')},${'file.'.repeat(41)}filename=a.raw`,
    );
    expect(error).toBeUndefined();
  });

  it('rule files pass the gate', async () => {
    mkdirSync(at('in'), { recursive: true });
    writeFileSync(at('in/b.raw'), pattern(4 * KiB));
    writeFileSync(at('rules'), '');
    const inside = (name: string) =>
      perform(info, { image: { filename: name } }, folder, { policy: { roots: [at('in')] } });
    expect((await inside('blkdebug::in/b.raw')).error).toBeUndefined();
    expect((await inside('blkdebug:rules:in/b.raw')).error?.kind).toBe('denied');
    expect((await inside('blkdebug::a.raw')).error?.kind).toBe('denied');
  });

  it('an image that has itself as its own file deep below is refused', async () => {
    const backing = json({ driver: 'raw', file: { driver: 'qcow2', file: file(at('loop.qcow2')) } });
    await perform(
      create,
      {
        filename: at('loop.qcow2'),
        format: 'qcow2',
        size: 64 * KiB,
        options: { backing_file: backing, backing_fmt: 'raw' },
        'no-backing-check': true,
      },
      folder,
    );
    const { error } = await open(`driver=qcow2,file.filename=${at('loop.qcow2')}`);
    expect(error?.context.check).toBe('backing-loop');
  });
});

describe('operations over filters', () => {
  const copyFrom = (source: string, extra: object = {}) =>
    perform(
      convert,
      {
        create: true,
        sources: [{ filename: source }],
        target: { filename: at('out.raw'), format: 'raw' },
        ...extra,
      },
      folder,
    );

  it('salvage: what cannot be looked up is data, what cannot be read is zeros, told in order', async () => {
    const data = pattern(4096 * KiB);
    writeFileSync(at('s.raw'), data);
    const rule = (iotype: string, sector: number) => ({ event: 'none', iotype, sector });
    const source = json({
      driver: 'blkdebug',
      image: { driver: 'raw', file: file(at('s.raw')) },
      'inject-error': [
        rule('block-status', 17),
        rule('block-status', 6000),
        rule('read', 6000),
        rule('read', 9),
      ],
    });
    const { error, stderr } = await copyFrom(source, { salvage: true });
    expect(error).toBeUndefined();
    const warning = (what: string, sector: number) =>
      `qemu-img: warning: error while reading ${what} ${sector * 512}: Input/output error\n`;
    const status = (sector: number) => warning('block status at offset', sector);
    expect(stderr).toBe(
      status(17) + status(6000) + status(17) + warning('offset', 9) + status(6000) + warning('offset', 6000),
    );
    data.fill(0, 9 * 512, 10 * 512);
    data.fill(0, 6000 * 512, 6001 * 512);
    expect(readFileSync(at('out.raw')).equals(data)).toBe(true);
    const failed = await copyFrom(source);
    expect(failed.error?.message).toBe('error while reading block status at offset 0: Input/output error');
  });

  it('quorum: the majority wins, a tie fails, losers are rewritten', async () => {
    const data = pattern(64 * KiB);
    const wrong = Buffer.from(data);
    wrong[40_000] = 0;
    for (const name of ['q0', 'q1', 'q2']) writeFileSync(at(name), name === 'q0' ? wrong : data);
    const quorum = (threshold: number) =>
      json({
        driver: 'quorum',
        'vote-threshold': threshold,
        children: ['q0', 'q1', 'q2'].map((name) => file(at(name))),
      });
    expect((await copyFrom(quorum(2))).error).toBeUndefined();
    expect(readFileSync(at('out.raw')).equals(data)).toBe(true);
    expect((await copyFrom(quorum(3))).error?.context.errno).toBe('EIO');
    const rewriting = `driver=quorum,vote-threshold=2,rewrite-corrupted=on${['q0', 'q1', 'q2'].map((name, i) => `,children.${i}.driver=file,children.${i}.filename=${name}`).join('')}`;
    const { error } = await perform(
      async (_: object, context) => {
        const node = await openImage({ 'image-opts': rewriting }, { writable: true }, context);
        await node.read(0, Buffer.alloc(64 * KiB));
        await node.close();
      },
      {},
      folder,
    );
    expect(error).toBeUndefined();
    expect(readFileSync(at('q0')).equals(data)).toBe(true);
  });

  it('blkverify fails where its two nodes differ', async () => {
    const error = await errorOf(
      (async () => {
        const { error } = await copyFrom(
          json({ driver: 'blkverify', raw: file(at('a.raw')), test: file(at('in/b.raw')) }),
        );
        if (error !== undefined) throw error;
        writeFileSync(at('c.raw'), Buffer.alloc(4 * KiB, 7));
        const other = await copyFrom(
          json({ driver: 'blkverify', raw: file(at('c.raw')), test: file(at('in/b.raw')) }),
        );
        if (other.error !== undefined) throw other.error;
      })(),
    );
    expect(error.message).toContain('blkverify: read offset=0 bytes=4096 contents mismatch at offset 0');
  });

  it('data events come from data alone: metadata of qcow2 is read before read_aio', async () => {
    writeFileSync(at('d.raw'), pattern(256 * KiB));
    await perform(
      convert,
      {
        create: true,
        sources: [{ filename: at('d.raw'), format: 'raw' }],
        target: { filename: at('d.qcow2'), format: 'qcow2' },
      },
      folder,
    );
    writeFileSync(at('conf'), '[inject-error]\nevent = "read_aio"\nerrno = "5"\n');
    const name = `blkdebug:${at('conf')}:${at('d.qcow2')}`;
    expect((await perform(info, { image: { filename: name } }, folder)).error).toBeUndefined();
    expect((await copyFrom(name)).error?.message).toMatch(
      /^error while reading at byte 0: Input\/output error/,
    );
  });
});
