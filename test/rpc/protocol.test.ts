import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { tempDir } from '../support/reference.js';
import { type Answer, fake, Peer, type RunningDaemon, sleep, startDaemon } from './support/daemon.js';

const folder = tempDir();
let daemon: RunningDaemon;
beforeAll(async () => {
  daemon = await startDaemon(join(folder, 'p.sock'), [
    '--max-message',
    '65536',
    '--max-calls',
    '20',
    '--max-connections',
    '12',
  ]);
});
afterAll(() => void daemon.process.kill('SIGKILL'));
const connect = (): Promise<Peer> => Peer.connect(daemon.socket);
const single = (peer: Peer): Answer[] => peer.received as Answer[];

describe('JSON-RPC on the Unix socket', () => {
  it('says nothing unasked', async () => {
    const peer = await connect();
    const other = await connect();
    await other.call('image-check', fake('steps:3:10:1'));
    await sleep(50);
    expect(peer.received).toEqual([]);
  });

  it('answers messages that are split and merged in any way', async () => {
    const peer = await connect();
    const text = '{"jsonrpc":"2.0","id":"ä","method":"ping"}\n';
    for (const byte of Buffer.from(text)) {
      peer.socket.write(Buffer.from([byte]));
      if (byte > 0x7f) await sleep(2);
    }
    await peer.answer('ä');
    peer.write(
      `\r\n\n${[1, 2, 3].map((id) => `{"jsonrpc":"2.0","id":${id},"method":"ping"}`).join('\r\n')}\n`,
    );
    await peer.answer(3);
    expect(single(peer).map((each) => each.id)).toEqual(['ä', 1, 2, 3]);
  });

  it('echoes any id', async () => {
    const peer = await connect();
    for (const id of [0, -1.5, '', 'x', null]) {
      peer.received.length = 0;
      peer.write(`${JSON.stringify({ jsonrpc: '2.0', id, method: 'ping' })}\n`);
      expect(await peer.answer(id)).toEqual({ jsonrpc: '2.0', id, result: {} });
    }
  });

  it('tells what is wrong with a message', async () => {
    const cases: [string, number, string][] = [
      ['nonsense', -32700, 'parse'],
      ['"text"', -32600, 'invalid-request'],
      ['null', -32600, 'invalid-request'],
      ['{}', -32600, 'invalid-request'],
      ['{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600, 'invalid-request'],
      ['{"jsonrpc":"2.0","id":1,"method":5}', -32600, 'invalid-request'],
      ['{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600, 'invalid-request'],
      ['{"jsonrpc":"2.0","id":1,"method":"ping","params":7}', -32600, 'invalid-request'],
      ['{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32602, 'invalid-params'],
      ['{"jsonrpc":"2.0","id":1,"method":"frobnicate"}', -32601, 'unknown-method'],
      ['{"jsonrpc":"2.0","id":1,"method":"toString"}', -32601, 'unknown-method'],
      ['{"jsonrpc":"2.0","id":1,"method":"__proto__"}', -32601, 'unknown-method'],
      ['[]', -32600, 'invalid-request'],
      [`${'['.repeat(30_000)}${']'.repeat(30_000)}`, -32041, 'too-deep'],
      [`[${'1,'.repeat(200)}1]`, -32042, 'batch-too-long'],
    ];
    const peer = await connect();
    for (const [text, code, kind] of cases) {
      peer.received.length = 0;
      peer.write(`${text}\n`);
      const answer = await peer.until(() => single(peer)[0]);
      expect({ text: text.slice(0, 60), code: answer.error?.code, kind: answer.error?.data?.kind }).toEqual({
        text: text.slice(0, 60),
        code,
        kind,
      });
    }
    const unknown = await peer.call('frobnicate');
    expect(unknown.error).toMatchObject({
      message: 'The command frobnicate has not been found',
      data: { class: 'CommandNotFound' },
    });
  });

  it('answers batches as batches: of one, of rubbish, mixed, of notifications alone', async () => {
    const peer = await connect();
    const last = async (text: string): Promise<unknown> => {
      const before = peer.received.length;
      peer.write(`${text}\n`);
      return peer.until(() => peer.received[before]);
    };
    expect(await last('[{"jsonrpc":"2.0","id":1,"method":"ping"}]')).toEqual([
      { jsonrpc: '2.0', id: 1, result: {} },
    ]);
    expect(await last('[null]')).toMatchObject([{ id: null, error: { code: -32600 } }]);
    const mixed = (await last(
      '[1,{"jsonrpc":"2.0","method":"ping"},{"jsonrpc":"2.0","id":"a","method":"ping"},[],{"jsonrpc":"2.0","id":"b","method":"no"}]',
    )) as Answer[];
    expect(mixed.length).toBe(4);
    expect(mixed.find((each) => each.id === 'a')?.result).toEqual({});
    expect(mixed.find((each) => each.id === 'b')?.error?.code).toBe(-32601);
    peer.write('[{"jsonrpc":"2.0","method":"ping"},{"jsonrpc":"2.0","method":"no"}]\n');
    // Nothing for that; the next answer is the next call's.
    expect(await last('{"jsonrpc":"2.0","id":9,"method":"ping"}')).toMatchObject({ id: 9 });
  });

  it('does not answer notifications, but does what they say', async () => {
    const peer = await connect();
    peer.write(
      '{"jsonrpc":"2.0","method":"no-such-thing"}\n{"jsonrpc":"2.0","method":"image-check","params":{"image":{"filename":"steps:1:1:0"},"job":{"id":"noted","auto-dismiss":false}}}\n',
    );
    const other = await connect();
    let jobs = await other.call('query-jobs');
    while (jobs.result[0]?.status !== 'concluded') jobs = await other.call('query-jobs');
    expect(jobs.result).toMatchObject([{ id: 'noted', status: 'concluded' }]);
    expect(peer.received).toEqual([]);
    await peer.call('job-dismiss', { id: 'noted' });
  });

  it('goes on after a line that is not UTF-8, and ends after one that is too long', async () => {
    const peer = await connect();
    peer.socket.write(Buffer.from([0x22, 0xff, 0xfe, 0x22, 0x0a]));
    expect((await peer.until(() => single(peer)[0])).error?.data?.kind).toBe('parse');
    expect((await peer.call('ping')).result).toEqual({});
    const before = peer.received.length;
    peer.write('x'.repeat(70_000));
    expect((await peer.until(() => single(peer)[before])).error?.data?.kind).toBe('message-too-long');
    await peer.closed;
  });

  it('names the member that is wrong', async () => {
    const peer = await connect();
    const cases: [string, unknown, string, RegExp][] = [
      ['image-info', {}, 'image', /'image' is missing/],
      ['image-info', undefined, 'image', /'image' is missing/],
      [
        'image-info',
        { image: { filename: 5 } },
        'image.filename',
        /'image.filename' must be a string, not 5/,
      ],
      ['image-info', { image: { filename: 'x', frob: 1 } }, 'image.frob', /'image.frob' is not a member/],
      ['image-info', { image: { filename: 'x', cache: 'often' } }, 'image.cache', /none.*writeback/],
      ['image-info', { image: { filename: 'x' }, cwd: 'here' }, 'cwd', /'cwd' must be an absolute path/],
      ['image-info', { image: { filename: 'x' }, job: { id: 'a b' } }, 'job.id', /letters, digits/],
      ['image-info', { image: { filename: 'x' }, job: { wait: 'no' } }, 'job.wait', /true or false/],
      ['image-info', { image: { filename: 'x' }, job: { tea: 1 } }, 'job.tea', /not a member/],
      ['image-info', { image: { filename: 'x' }, job: 'a' }, 'job', /'job.?' must be|params must be/],
      ['image-create', { filename: 'x', size: -1 }, 'size', /'size' must be >=0/],
      ['image-create', { filename: 'x', size: 1.5 }, 'size', /'size'/],
      ['image-convert', { sources: [], target: {} }, 'sources', /'sources'/],
      ['job-set-speed', { id: 'x' }, 'speed', /'speed' is missing/],
      ['events-subscribe', { filter: { events: ['NO'] } }, 'filter.events.0', /JOB_OUTPUT/],
      ['ping', { a: 1 }, 'a', /'a' is not a member/],
    ];
    for (const [method, params, member, text] of cases) {
      const { error } = await peer.call(method, params);
      expect({ method, code: error?.code }).toEqual({ method, code: -32602 });
      expect(error?.message).toMatch(text);
      if (member !== 'job') expect(error?.data?.member).toBe(member);
    }
  });

  it('never repeats a value that may be a secret', async () => {
    const peer = await connect();
    const params = { image: { filename: 'x' }, objects: { data: 'sesame-open' } };
    expect(JSON.stringify(await peer.call('image-info', params))).not.toContain('sesame');
    const worse = { image: 'sesame-open', objects: 'sesame-open', job: { id: 'sesame open' } };
    expect(JSON.stringify(await peer.call('image-info', worse))).not.toContain('sesame');
    await peer.call('image-info', {
      image: { filename: 'fail' },
      objects: [{ 'qom-type': 'secret', id: 's', data: 'sesame-open' }],
    });
    expect(daemon.stderr()).not.toContain('sesame');
  });

  it('gives an operation its parameters with defaults, and the folder', async () => {
    const peer = await connect();
    const { result } = await peer.call('image-convert', {
      sources: [{ filename: 'a' }],
      target: { filename: 'b' },
      cwd: '/tmp',
    });
    expect(result).toMatchObject({
      cwd: '/tmp',
      params: { name: 'image-convert', create: true },
      policy: {},
    });
    expect(result.params.job).toBeUndefined();
  });

  it('limits calls that wait for jobs, and still takes others, to cancel them', async () => {
    const peer = await connect();
    const start = (n: number) => peer.send('image-check', fake('deaf', { id: `flight-${n}`, paused: true }));
    const waiting = Array.from({ length: 20 }, (_, n) => start(n));
    expect((await peer.answer(start(20))).error?.data?.kind).toBe('too-many-calls');
    expect((await peer.call('job-wait', { id: 'flight-1' })).error?.data?.kind).toBe('too-many-calls');
    expect((await peer.call('query-jobs')).result.length).toBe(20);
    for (let n = 0; n < 20; n++)
      expect((await peer.call('job-cancel', { id: `flight-${n}` })).result).toEqual({});
    for (const id of waiting) expect((await peer.answer(id)).error?.data?.kind).toBe('cancelled');
    const again = start(21);
    await peer.call('job-cancel', { id: 'flight-21' });
    expect((await peer.answer(again)).error?.data?.kind).toBe('cancelled');
  });

  it('answers any number of quick calls that come at once', async () => {
    const peer = await connect();
    const ids = Array.from({ length: 3000 }, () => peer.send('ping'));
    expect((await peer.answer(ids.at(-1))).result).toEqual({});
    expect(single(peer).every((each) => each.error === undefined)).toBe(true);
  });

  it('limits connections, and says so', async () => {
    const first = await connect();
    const alone = async (): Promise<void> => {
      while ((await first.call('query-status')).result.connections > 1) await sleep(10);
    };
    await alone();
    const peers: Peer[] = [];
    for (let n = 0; n < 13; n++) peers.push(await connect());
    const refused = await Promise.race(peers.map((peer) => peer.until(() => single(peer)[0])));
    expect(refused.error?.data?.kind).toBe('too-many-connections');
    for (const peer of peers) peer.socket.destroy();
    await alone();
    expect((await (await connect()).call('ping')).result).toEqual({});
  });

  it('answers a peer that has sent its last', async () => {
    const peer = await connect();
    peer.socket.end(
      '{"jsonrpc":"2.0","id":1,"method":"image-check","params":{"image":{"filename":"steps:2:1:50"}}}',
    );
    expect((await peer.answer(1)).result).toEqual({ total: 2 });
    await peer.closed;
  });

  it('tells about itself', async () => {
    const peer = await connect();
    expect((await peer.call('query-version')).result).toMatchObject({
      qemu: { major: 10, minor: 0, micro: 2 },
    });
    const { result } = await peer.call('query-status');
    expect(result).toMatchObject({
      status: 'running',
      pid: daemon.process.pid,
      nodes: 0,
      workers: { lost: 0 },
    });
    expect(result.memory.rss).toBeGreaterThan(1 << 20);
  });

  it('survives rubbish: mutated messages, random bytes, connections cut anywhere', async () => {
    let seed = 12345;
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
      return (seed >> 8) % below;
    };
    const good = [
      '{"jsonrpc":"2.0","id":1,"method":"events-subscribe","params":{"filter":{"job":"x"},"since":0}}',
      '{"jsonrpc":"2.0","id":2,"method":"image-check","params":{"image":{"filename":"steps:2:10:1"},"job":{"id":"x"}}}',
      '[{"jsonrpc":"2.0","id":3,"method":"query-jobs"},{"jsonrpc":"2.0","id":4,"method":"job-cancel","params":{"id":"x"}}]',
    ];
    for (let round = 0; round < 150; round++) {
      const peer = await connect();
      const bytes = Buffer.from(`${good.slice(0, 1 + random(3)).join('\n')}\n`);
      for (let n = random(8); n > 0; n--) bytes[random(bytes.length)] = random(256);
      peer.socket.write(bytes.subarray(0, 1 + random(bytes.length)));
      if (random(2) === 0) peer.socket.end();
      if (random(4) > 0) await sleep(random(4));
      peer.socket.destroy();
      await peer.closed;
    }
    expect((await (await connect()).call('ping')).result).toEqual({});
    expect(daemon.log().filter((line) => ['error', 'fatal'].includes(line.level as string))).toEqual([]);
  });

  it('does not take memory for a peer that asks and does not read', async () => {
    const peer = await connect();
    peer.socket.pause();
    const asked = `${JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'query-jobs' })}\n`.repeat(1000);
    for (let n = 0; n < 50; n++) peer.write(asked);
    await sleep(300);
    const other = await connect();
    const { result } = await other.call('query-status');
    expect(result.memory.rss).toBeLessThan(200 << 20);
    peer.socket.destroy();
  });
});
