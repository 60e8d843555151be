/** The QMP listener of a running daemon: what is served, told, and described. */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { tempDir } from '../support/reference.js';
import { Peer, startDaemon } from './support/daemon.js';
import { createFile, QmpPeer, type Reply, serveQmp } from './support/qmp.js';

const folder = tempDir();
const serve = (flags: readonly string[] = []) => serveQmp(folder, flags);

describe('connections', () => {
  it('are greeted in a chunk of their own, and served many at a time', async () => {
    const { socket, at } = await serve();
    expect(statSync(socket).mode & 0o777).toBe(0o600);
    const first = await QmpPeer.connect(socket);
    await first.until((reply) => 'QMP' in reply);
    expect(first.raw).toMatch(/^\{"QMP": \{.*\}\}\r\n$/);
    await first.ok('qmp_capabilities');
    const others = await Promise.all(Array.from({ length: 5 }, () => QmpPeer.ready(socket)));
    const silent = await QmpPeer.connect(socket);
    await createFile(first, 'j', at('a'), 4096);
    await first.ok('job-dismiss', { id: 'j' });
    for (const peer of [first, ...others]) {
      await peer.status('j', 'null');
      const states = peer.lines
        .filter((line) => line.includes('JOB_STATUS'))
        .map((line) => JSON.parse(line).data.status);
      expect(states).toEqual(['created', 'running', 'waiting', 'pending', 'concluded', 'null']);
    }
    expect(silent.lines.join('')).not.toContain('JOB_STATUS_CHANGE');
  });

  it('hear that a job was created and runs before the answer of the command that started it', async () => {
    const { socket, at } = await serve();
    const qmp = await QmpPeer.ready(socket);
    await createFile(qmp, 'j', at('a'), 4096);
    const said = qmp.lines.map((line) => JSON.parse(line) as Reply);
    const answer = said.findIndex((reply) => reply.id === 'call-2');
    const running = said.findIndex((reply) => reply.data?.status === 'running');
    expect(running).toBeGreaterThan(0);
    expect(answer).toBeGreaterThan(running);
  });

  it('are bounded in number with the others, and told why', async () => {
    const { socket, daemon } = await serve(['--max-connections', '2']);
    await QmpPeer.ready(socket);
    await Peer.connect(daemon.socket);
    const third = await QmpPeer.connect(socket);
    await third.closed;
    expect(third.lines).toEqual([
      '{"error": {"class": "GenericError", "desc": "the daemon serves at most 2 connections"}}',
    ]);
  });

  it('may have sent all before they read', async () => {
    const { socket } = await serve();
    const qmp = await QmpPeer.connect(socket);
    qmp.socket.end(
      `{'execute':'qmp_capabilities'}{'execute':'query-jobs','id':1}{"execute":"query-jobs","id":2}`,
    );
    await qmp.closed;
    expect(qmp.lines.slice(1)).toEqual([
      '{"return": {}}',
      '{"return": [], "id": 1}',
      '{"return": [], "id": 2}',
    ]);
  });
});

describe('the end', () => {
  it('is told to clients, comes after the answer to quit, and leaves no socket', async () => {
    const { socket, daemon } = await serve();
    const qmp = await QmpPeer.ready(socket);
    const other = await QmpPeer.ready(socket);
    await qmp.ok('quit');
    await Promise.all([qmp.closed, other.closed]);
    const events = [qmp, other].map((peer) => JSON.parse(peer.lines.at(-1)!) as Reply);
    for (const { event, data } of events) {
      expect({ event, data }).toEqual({ event: 'SHUTDOWN', data: { guest: false, reason: 'host-qmp-quit' } });
    }
    expect(await daemon.exited).toBe(0);
    expect(statSync(socket, { throwIfNoEntry: false })).toBeUndefined();
    expect(statSync(`${socket}.lock`, { throwIfNoEntry: false })).toBeUndefined();
  });

  it('of a daemon that cannot have the socket is one line', async () => {
    const { socket } = await serve();
    const second = await startDaemon(join(folder, 'other.sock'), ['--qmp-socket', socket], { real: true });
    expect(await second.exited).toBe(1);
    expect(second.stderr()).toBe(`imgd: another imgd serves ${socket}\n`);
  });
});

describe('introspection', () => {
  it('agrees with what is served', async () => {
    const { socket } = await serve();
    const qmp = await QmpPeer.ready(socket);
    const schema = (await qmp.ok('query-qmp-schema')) as Reply[];
    const types = new Map(schema.map((info) => [info.name as string, info]));
    expect(types.size).toBe(schema.length);
    const commands = schema
      .filter((info) => info['meta-type'] === 'command')
      .map((info) => info.name as string);
    const listed = ((await qmp.ok('query-commands')) as Reply[]).map((info) => info.name as string);
    expect([...commands].sort()).toEqual([...listed].sort());
    for (const info of schema) {
      const { 'arg-type': given, 'ret-type': result, 'element-type': of, members = [], variants = [] } = info;
      const references = [
        given,
        result,
        of,
        ...members.map((each: Reply) => each.type),
        ...variants.map((each: Reply) => each.type),
      ];
      for (const name of references) if (name !== undefined) expect(types.has(name), name).toBe(true);
    }

    for (const name of commands) {
      if (['quit', 'qmp_capabilities'].includes(name)) continue;
      const members = types.get(types.get(name)!['arg-type'])!.members as Reply[];
      const needed = members.filter((member) => !('default' in member));
      // A member that is not in the schema is refused, and one that must be there is missed.
      const sample: Record<string, unknown> = {};
      for (const { name: member, type } of needed) sample[member] = sampleOf(type, types);
      if (needed.length > 0) {
        const { error } = await qmp.call(name, {});
        expect(error?.desc, name).toBe(`Parameter '${needed[0]!.name}' is missing`);
      }
      const { error } = await qmp.call(name, { ...sample, 'no-such-member': 1 });
      expect(error?.desc, name).toMatch(/^Parameter '(no-such-member' is unexpected|\w.*' is missing)/);
      for (const { name: member, type } of members) {
        if (types.get(type)?.['meta-type'] === 'builtin' && types.get(type)!['json-type'] === 'value')
          continue;
        const wrong = await qmp.call(name, {
          ...sample,
          [member]: types.get(type)?.['json-type'] === 'array' ? 1 : [[]],
        });
        expect(wrong.error, `${name}: ${member}`).toBeDefined();
      }
    }
  });

  it('shows where clients look: formats, transactions, out of band', async () => {
    const { socket } = await serve();
    const qmp = await QmpPeer.ready(socket);
    const schema = (await qmp.ok('query-qmp-schema')) as Reply[];
    const find = (name: string) => schema.find((info) => info.name === name)!;
    const add = find(find('blockdev-add')['arg-type']);
    expect(add.tag).toBe('driver');
    const variant = (name: string) => find(add.variants.find((each: Reply) => each.case === name).type);
    const names = (info: Reply) => info.members.map((member: Reply) => member.name);
    expect(names(variant('qcow2'))).toEqual(
      expect.arrayContaining(['file', 'backing', 'data-file', 'lazy-refcounts']),
    );
    expect(names(variant('file'))).toEqual(expect.arrayContaining(['filename', 'locking', 'aio']));
    expect(find('job-cancel')['allow-oob']).toBe(true);
    expect(find('query-jobs')['allow-oob']).toBeUndefined();
    expect(schema.filter((info) => info['meta-type'] === 'event').map((info) => info.name)).toContain(
      'BLOCK_JOB_COMPLETED',
    );
  });
});

/** Any value of a type. */
function sampleOf(name: string, types: ReadonlyMap<string, Reply>): unknown {
  const type = types.get(name)!;
  switch (type['meta-type']) {
    case 'builtin':
      return { string: 'x', int: 1, number: 1, boolean: true, null: null, value: 1 }[
        type['json-type'] as string
      ];
    case 'enum':
      return type.values[0];
    case 'array':
      return [];
    case 'alternate':
      return sampleOf(type.members[0].type, types);
    default: {
      const sample: Record<string, unknown> = {};
      const variant = type.variants?.[0];
      for (const member of type.members as Reply[]) {
        if ('default' in member) continue;
        sample[member.name] = member.name === type.tag ? variant.case : sampleOf(member.type, types);
      }
      return variant === undefined ? sample : { ...sample, ...(sampleOf(variant.type, types) as object) };
    }
  }
}
