import { describe, expect, it } from 'vitest';
import type { Transport } from '../../src/daemon/listeners/transport.js';
import { EventBus } from '../../src/daemon/sessions/events.js';
import { Outbox } from '../../src/daemon/sessions/outbox.js';
import type { EventFilter } from '../../src/protocol/commands/events.js';
import type { EventParams } from '../../src/protocol/events.js';

/** A connection whose peer reads only when told to. */
function connection() {
  const sent: string[] = [];
  const state = { room: Number.POSITIVE_INFINITY };
  const transport: Transport = {
    kind: 'unix',
    role: 'admin',
    send(text) {
      sent.push(text);
      return --state.room > 0;
    },
    pause: () => undefined,
    resume: () => undefined,
    end: () => undefined,
    destroy: () => undefined,
  };
  const outbox = new Outbox(transport, () => undefined);
  return {
    outbox,
    state,
    sent,
    events: () => sent.map((text) => JSON.parse(text).params as EventParams),
    subscribe(bus: EventBus, filter: EventFilter = {}, since?: number) {
      const { subscription, start } = bus.subscribe(filter, outbox, outbox, since, () => undefined);
      start();
      return subscription;
    },
  };
}
const status = (bus: EventBus, id: string): void =>
  bus.publish('JOB_STATUS_CHANGE', id, { id, status: 'running', type: 'image-info' });
const progress = (bus: EventBus, id: string, done: number): void =>
  bus.publish('JOB_PROGRESS', id, { id, done });

describe('events', () => {
  it('reach those whose filter takes them, numbered', () => {
    const bus = new EventBus();
    const all = connection();
    const some = connection();
    all.subscribe(bus);
    some.subscribe(bus, { job: 'b', events: ['JOB_STATUS_CHANGE'] });
    status(bus, 'a');
    status(bus, 'b');
    progress(bus, 'b', 1);
    expect(all.events().map((each) => [each.seq, each.event])).toEqual([
      [1, 'JOB_STATUS_CHANGE'],
      [2, 'JOB_STATUS_CHANGE'],
      [3, 'JOB_PROGRESS'],
    ]);
    expect(some.events().map((each) => each.seq)).toEqual([2]);
  });

  it('are replayed from a number, without progress, and refused when forgotten', () => {
    const bus = new EventBus();
    for (let n = 0; n < 10; n++) {
      status(bus, 'a');
      progress(bus, 'a', n);
    }
    const late = connection();
    late.subscribe(bus, {}, 10);
    expect(late.events().map((each) => each.seq)).toEqual([11, 13, 15, 17, 19]);
    for (let n = 0; n < 5000; n++) status(bus, 'a');
    expect(() => late.subscribe(bus, {}, 10)).toThrow(/forgotten/);
    const later = connection();
    later.subscribe(bus, {}, bus.seq - 3);
    expect(later.events().length).toBe(3);
  });

  it('that happen between subscribing and its answer are not lost', () => {
    const bus = new EventBus();
    const peer = connection();
    const { start } = bus.subscribe({}, peer.outbox, peer.outbox, undefined, () => undefined);
    status(bus, 'a');
    expect(peer.sent.length).toBe(0);
    start();
    expect(peer.events().length).toBe(1);
  });

  it('of progress give way to newer ones when the reader is slow, and it is told how many', () => {
    const bus = new EventBus();
    const peer = connection();
    peer.subscribe(bus);
    peer.state.room = 1;
    progress(bus, 'a', 0);
    for (let n = 1; n <= 100; n++) {
      progress(bus, 'a', n);
      progress(bus, 'b', n);
      if (n === 50) status(bus, 'a');
    }
    peer.state.room = 100;
    peer.outbox.drained();
    const events = peer.events();
    expect(events.length).toBe(4);
    expect(events.map((each) => each.event).slice(1)).toEqual([
      'JOB_STATUS_CHANGE',
      'JOB_PROGRESS',
      'JOB_PROGRESS',
    ]);
    expect(events[1]!.lagged).toBe(198);
    expect(events[3]!.lagged).toBeUndefined();
    expect(events.map((each) => each.seq)).toEqual([...events.map((each) => each.seq)].sort((a, b) => a - b));
    expect(peer.outbox.bytes).toBe(0);
  });

  it('end for a reader that lets too many pile up, which is told so', () => {
    const bus = new EventBus();
    const slow = connection();
    const good = connection();
    slow.subscribe(bus);
    good.subscribe(bus);
    slow.state.room = 1;
    for (let n = 0; n < 10_000; n++) status(bus, `job-${n}`);
    expect(good.sent.length).toBe(10_000);
    expect(bus.subscriptions).toBe(1);
    expect(slow.outbox.bytes).toBeLessThan(1000);
    slow.state.room = 10;
    slow.outbox.drained();
    expect(slow.events().at(-1)).toMatchObject({ event: 'SUBSCRIPTION_ENDED', data: { reason: 'slow' } });
    expect(slow.sent.length).toBe(2);
  });

  it('that a sender waits for are never let go, and are acknowledged when sent or when the reader has gone', () => {
    const bus = new EventBus();
    const peer = connection();
    peer.subscribe(bus);
    peer.state.room = 1;
    let delivered = 0;
    const text = JSON.stringify({ id: 'a', stream: 'stdout', text: 'x'.repeat(100_000) });
    for (let n = 0; n < 100; n++) bus.publish('JOB_OUTPUT', 'a', text, peer.outbox, () => delivered++);
    expect(delivered).toBe(1);
    expect(bus.subscriptions).toBe(1);
    peer.state.room = 50;
    peer.outbox.drained();
    expect(delivered).toBe(51);
    peer.outbox.close();
    expect(delivered).toBe(100);
  });

  it('of a subscription that was ended do not follow', () => {
    const bus = new EventBus();
    const peer = connection();
    const subscription = peer.subscribe(bus);
    peer.state.room = 1;
    for (let n = 0; n < 5; n++) status(bus, 'a');
    subscription.end();
    peer.state.room = 10;
    peer.outbox.drained();
    expect(peer.sent.length).toBe(1);
  });
});
