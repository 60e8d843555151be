/** A QMP connection by itself: order of commands, those out of band, and clients that do not read. */
import { describe, expect, it } from 'vitest';
import type { Transport } from '../../src/daemon/listeners/transport.js';
import { QmpError } from '../../src/daemon/qmp/reply.js';
import { QmpSession } from '../../src/daemon/qmp/session.js';

function connection() {
  const sent: string[] = [];
  const began: string[] = [];
  const waiting = new Map<string, () => void>();
  const state = { writable: true, paused: false, destroyed: false, ended: false };
  const transport: Transport = {
    kind: 'unix',
    role: 'admin',
    send(text) {
      sent.push(text);
      return state.writable;
    },
    pause: () => {
      state.paused = true;
    },
    resume: () => {
      state.paused = false;
    },
    end: () => {
      state.ended = true;
    },
    destroy: () => {
      state.destroyed = true;
    },
  };
  let slow = 0;
  const session = new QmpSession(
    1,
    transport,
    {
      version: '{}',
      bug: (error) => {
        throw error;
      },
      check: (_, given) => given,
      async run(name, _, oob) {
        began.push(name);
        if (name === 'fail') throw new QmpError('no', 'DeviceNotFound');
        if (name.startsWith('wait')) await new Promise<void>((resolve) => waiting.set(name, resolve));
        return name.startsWith('large') ? `"${'x'.repeat(100_000)}"` : `{"oob": ${oob}}`;
      },
    },
    () => slow++,
  );
  const write = (...texts: unknown[]) =>
    session.bytes(
      Buffer.from(texts.map((text) => (typeof text === 'string' ? text : JSON.stringify(text))).join('')),
    );
  const turn = () => new Promise((resolve) => setImmediate(resolve));
  return { session, sent, began, waiting, state, write, turn, slow: () => slow };
}

const negotiate = { execute: 'qmp_capabilities', arguments: { enable: ['oob'] } };

describe('commands', () => {
  it('are answered one after another, and those out of band at once', async () => {
    const { sent, began, waiting, write, turn } = connection();
    write(negotiate);
    await turn();
    write({ execute: 'wait', id: 1 }, { execute: 'next', id: 2 }, { 'exec-oob': 'quick', id: 3 });
    await turn();
    expect(began).toEqual(['wait', 'quick']);
    waiting.get('wait')!();
    await turn();
    expect(sent.slice(1)).toEqual([
      '{"return": {}}',
      '{"return": {"oob": true}, "id": 3}',
      '{"return": {"oob": false}, "id": 1}',
      '{"return": {"oob": false}, "id": 2}',
    ]);
  });

  it('fail with their class', async () => {
    const { sent, write, turn } = connection();
    write(negotiate, { execute: 'fail' });
    await turn();
    expect(sent.at(-1)).toBe('{"error": {"class": "DeviceNotFound", "desc": "no"}}');
  });

  it('stop being read when many wait', async () => {
    const { began, waiting, state, write, turn } = connection();
    write(negotiate, { execute: 'wait' });
    for (let i = 0; i < 8; i++) write({ execute: 'next' });
    await turn();
    expect(state.paused).toBe(true);
    expect(began).toHaveLength(1);
    waiting.get('wait')!();
    for (let i = 0; i < 20; i++) await turn();
    expect(state.paused).toBe(false);
    expect(began).toHaveLength(9);
  });

  it('are not begun while answers pile up', async () => {
    const { session, began, state, write, turn } = connection();
    write(negotiate);
    await turn();
    state.writable = false;
    for (let i = 0; i < 40; i++) write({ execute: `large${i}` });
    for (let i = 0; i < 50; i++) await turn();
    expect(began.length).toBeLessThan(8);
    state.writable = true;
    for (let i = 0; i < 100; i++) {
      session.drained();
      await turn();
    }
    expect(began).toHaveLength(40);
  });

  it('that wait do not keep a connection that is gone', async () => {
    const { session, began, waiting, write, turn } = connection();
    write(negotiate, { execute: 'wait' }, { execute: 'never' });
    await turn();
    session.closed();
    waiting.get('wait')!();
    await turn();
    expect(began).toEqual(['wait']);
  });
});

describe('events', () => {
  it('come after the negotiation, never before', async () => {
    const { session, sent, write, turn } = connection();
    session.event('"early"');
    write(negotiate);
    await turn();
    session.event('"late"');
    expect(sent).not.toContain('"early"');
    expect(sent.at(-1)).toBe('"late"');
  });

  it('let a client go that does not read them, and cost no more than a bound', async () => {
    const { session, state, write, turn, slow } = connection();
    write(negotiate);
    await turn();
    state.writable = false;
    let sent = 0;
    while (!state.destroyed && sent < 100_000) {
      session.event(`"${'e'.repeat(200)}"`);
      sent++;
    }
    expect(slow()).toBe(1);
    expect(sent).toBeLessThan(4000);
  });
});
