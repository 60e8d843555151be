/** What QMP's clients may call: roles, arguments in QAPI's words, objects, events; and the setting. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as v from 'valibot';
import { afterAll, describe, expect, it } from 'vitest';
import { ConfigError, parseConfig } from '../../src/daemon/config.js';
import { checkArguments } from '../../src/daemon/qmp/check.js';
import { createDispatch } from '../../src/daemon/qmp/dispatch.js';
import { createEvents } from '../../src/daemon/qmp/events.js';
import { introspect } from '../../src/daemon/qmp/introspect.js';
import { Objects } from '../../src/daemon/qmp/objects.js';
import { EMPTY, qapiArguments, qapiType } from '../../src/daemon/qmp/qapi.js';
import type { Session } from '../../src/daemon/sessions/session.js';
import type { JobInfo } from '../../src/protocol/commands/jobs.js';
import type { Role } from '../../src/protocol/roles.js';

const folder = mkdtempSync(join(tmpdir(), 'imgd-test-'));
afterAll(() => rmSync(folder, { recursive: true }));

describe('roles', () => {
  const table = new Map(
    (['watch', 'operate', 'admin'] as const).map((role) => [
      role,
      { name: role, arguments: EMPTY, result: EMPTY, role, oob: false, run: () => ({ role }) },
    ]),
  );
  const commands = createDispatch(table, '{}', () => undefined);
  const call = (role: Role) => ({ session: { role } as Session, afterAnswer: () => undefined });

  it('are looked at for each command', async () => {
    expect(await commands.run('operate', {}, false, call('operate'))).toBe('{"role": "operate"}');
    expect(await commands.run('watch', {}, false, call('admin'))).toBe('{"role": "watch"}');
    await expect(commands.run('admin', {}, false, call('operate'))).rejects.toThrow(
      "'admin' needs the role 'admin', this client has 'operate'",
    );
  });
});

describe('arguments', () => {
  const schema = v.strictObject({
    name: v.string(),
    many: v.optional(v.array(v.strictObject({ on: v.boolean() }))),
    size: v.optional(v.pipe(v.number(), v.safeInteger(), v.minValue(0))),
    either: v.optional(v.pipe(v.union([v.string(), v.array(v.string())]), v.title('Either'))),
    tagged: v.optional(
      v.variant('kind', [
        v.strictObject({ kind: v.literal('a'), x: v.number() }),
        v.strictObject({ kind: v.picklist(['b', 'c']) }),
      ]),
    ),
    free: v.optional(v.record(v.string(), v.string())),
  });
  const type = qapiArguments(schema);
  const said = (given: never): string => {
    try {
      checkArguments(type, given);
      return '';
    } catch (error) {
      return (error as Error).message;
    }
  };

  it.each([
    [{ name: 'n' }, ''],
    [{}, "Parameter 'name' is missing"],
    [{ name: 'n', other: 1 }, "Parameter 'other' is unexpected"],
    [{ name: 1 }, "Invalid parameter type for 'name', expected: string"],
    [
      { name: 'n', many: [{ on: true }, { on: 1 }] },
      "Invalid parameter type for 'many[1].on', expected: boolean",
    ],
    [{ name: 'n', many: [{}] }, "Parameter 'many[0].on' is missing"],
    [{ name: 'n', size: -1 }, "Parameter 'size' expects uint64"],
    [{ name: 'n', size: 1n << 60n }, ''],
    [{ name: 'n', either: 1 }, "Invalid parameter type for 'either', expected: Either"],
    [{ name: 'n', either: ['x', 1] }, "Invalid parameter type for 'either[1]', expected: string"],
    [{ name: 'n', tagged: {} }, "Parameter 'tagged.kind' is missing"],
    [{ name: 'n', tagged: { kind: 'd' } }, "Parameter 'kind' does not accept value 'd'"],
    [{ name: 'n', tagged: { kind: 'a' } }, "Parameter 'tagged.x' is missing"],
    [{ name: 'n', tagged: { kind: 'b', x: 1 } }, "Parameter 'tagged.x' is unexpected"],
    [{ name: 'n', free: { whatever: 'x' } }, ''],
    [{ name: 'n', free: [] }, "Invalid parameter type for 'free', expected: object"],
    [JSON.parse('{"name": "n", "__proto__": {}}'), "Parameter '__proto__' is unexpected"],
    [JSON.parse('{"__proto__": {"name": "n"}}'), "Parameter 'name' is missing"],
  ])('%o', (given, expected) => expect(said(given as never)).toBe(expected));

  it('are described as they are checked', () => {
    const infos = introspect(
      [{ name: 'do', arguments: type, result: qapiType(v.array(v.string())), oob: true }],
      {},
    );
    const find = (name: string) => infos.find((info) => info.name === name) as never as Record<string, never>;
    expect(find('do')).toMatchObject({ 'meta-type': 'command', 'ret-type': '[str]', 'allow-oob': true });
    const members = find(find('do')['arg-type']!).members as unknown as {
      name: string;
      type: string;
      default?: null;
    }[];
    expect(members.map(({ name }) => name)).toEqual(['name', 'many', 'size', 'either', 'tagged', 'free']);
    expect(members[0]).toEqual({ name: 'name', type: 'str' });
    expect(members[2]).toEqual({ name: 'size', type: 'int', default: null });
    const tagged = find(members[4]!.type) as never as { tag: string; variants: { case: string }[] };
    expect(tagged.tag).toBe('kind');
    expect(tagged.variants.map((variant) => variant.case)).toEqual(['a', 'b', 'c']);
  });
});

describe('objects', () => {
  const secret = (id: string, more = {}) => ({ 'qom-type': 'secret', id, data: 'x', ...more }) as const;

  const nobody = { add: () => Promise.reject(), remove: () => Promise.reject() };

  it('go only to those who name them', async () => {
    const objects = new Objects({}, nobody);
    for (const id of ['s', 's.1', 'other']) await objects.add(secret(id));
    const ids = (value: unknown) => objects.referenced(value).map(({ id }) => id);
    expect(ids({ options: { 'encrypt.key-secret': 's' } })).toEqual(['s']);
    expect(ids({ 'image-opts': 'driver=luks,key-secret=s.1,file.filename=x' })).toEqual(['s.1']);
    expect(ids({ filename: 'sx s-1 another' })).toEqual([]);
    await objects.delete('s');
    expect(ids(['s'])).toEqual([]);
  });

  it('are read from a file when they are made, and from no pipe and no place outside of the roots', async () => {
    const file = join(folder, 'secret');
    writeFileSync(file, 'from a file');
    const objects = new Objects({ roots: [folder] }, nobody);
    await objects.add({ 'qom-type': 'secret', id: 'f', file });
    expect(objects.referenced('f')).toEqual([
      { 'qom-type': 'secret', id: 'f', data: 'from a file', format: 'raw' },
    ]);
    const add = (file: string) => objects.add({ 'qom-type': 'secret', id: 'g', file });
    await expect(add('/etc/hostname')).rejects.toThrow();
    await expect(add(folder)).rejects.toThrow('not a file');
  });
});

describe('events', () => {
  const event = (status: string) =>
    ({
      seq: 1,
      name: 'JOB_STATUS_CHANGE',
      job: 'j',
      json: () => `"data":{"id":"j","status":"${status}"}`,
    }) as const;
  const told = (type: string, states: readonly string[], more: Partial<JobInfo> = {}) => {
    const job = {
      id: 'j',
      type,
      status: 'running',
      'current-progress': 1,
      'total-progress': 2,
      created: 0,
      ...more,
    };
    const events = createEvents(() => job as JobInfo);
    return states
      .flatMap((status) => events.translate(event(status)))
      .map((text) => JSON.parse(text))
      .map((each) => (each.event === 'JOB_STATUS_CHANGE' ? each.data.status : each.event));
  };

  it('pass through the states that QEMU has between', () => {
    expect(told('image-create', ['created', 'running', 'concluded', 'null'])).toEqual([
      'created',
      'running',
      'waiting',
      'pending',
      'concluded',
      'null',
    ]);
    expect(told('image-create', ['running', 'concluded'], { error: 'no' })).toEqual([
      'running',
      'aborting',
      'concluded',
    ]);
  });

  it('do not say twice what the job itself has said', () => {
    const own = ['running', 'waiting', 'pending', 'concluded'];
    expect(told('image-create', own)).toEqual(own);
    expect(told('image-create', ['aborting', 'concluded'], { error: 'no' })).toEqual([
      'aborting',
      'concluded',
    ]);
  });

  it('have those of block jobs beside them', () => {
    expect(told('image-convert', ['concluded'])).toEqual([
      'waiting',
      'pending',
      'BLOCK_JOB_COMPLETED',
      'concluded',
    ]);
    expect(told('image-convert', ['pending'])).toEqual(['pending', 'BLOCK_JOB_PENDING']);
  });
});

describe('--qmp-socket', () => {
  const parse = (...argv: string[]) => parseConfig(['--socket', '/run/a.sock', ...argv], {}, 1000);

  it('is absent, or an absolute path', () => {
    expect(parse()).toMatchObject({ config: { qmpSocket: undefined } });
    expect(parse('--qmp-socket', '/run/q.sock')).toMatchObject({ config: { qmpSocket: '/run/q.sock' } });
    const fromEnv = parseConfig(['--socket', '/run/a.sock'], { IMGD_QMP_SOCKET: '/run/e.sock' }, 1000);
    expect(fromEnv).toMatchObject({ config: { qmpSocket: '/run/e.sock' } });
  });

  it('is refused where it cannot be', () => {
    expect(() => parse('--qmp-socket', '/run/a.sock')).toThrow(ConfigError);
    expect(() => parse('--qmp-socket', `/run/${'x'.repeat(110)}`)).toThrow('too long');
  });
});
