import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { createMeter } from '../../src/daemon/workers/meter.js';
import { createOutput } from '../../src/daemon/workers/output.js';
import { createPacer } from '../../src/engine/operations/pacer.js';
import type { JobProgress } from '../../src/protocol/commands/jobs.js';

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setImmediate', 'performance'] });
});
afterEach(() => {
  vi.useRealTimers();
});

describe('meter', () => {
  it('reports at most ten times a second, and the last state too', async () => {
    const sent: JobProgress[] = [];
    const meter = createMeter((progress) => sent.push(progress));
    for (let step = 1; step <= 1000; step++) {
      meter.update({ phase: 'copy', done: step * 10, total: 20_000 });
      await vi.advanceTimersByTimeAsync(1);
    }
    expect(sent.length).toBeGreaterThanOrEqual(9);
    expect(sent.length).toBeLessThanOrEqual(11);
    await vi.advanceTimersByTimeAsync(200);
    expect(sent.at(-1)).toMatchObject({ done: 10_000, percent: 50 });
  });

  it('tells rate and estimate', async () => {
    const sent: JobProgress[] = [];
    const meter = createMeter((progress) => sent.push(progress));
    for (let second = 1; second <= 30; second++) {
      await vi.advanceTimersByTimeAsync(1000);
      meter.update({ phase: 'copy', done: second * 5000, total: 300_000 });
    }
    expect(sent.at(-1)!.rate).toBeGreaterThan(4900);
    expect(sent.at(-1)!.rate).toBeLessThan(5100);
    expect(sent.at(-1)!.eta).toBeGreaterThan(28);
    expect(sent.at(-1)!.eta).toBeLessThan(32);
  });

  it('tells of 100 % only at the end', async () => {
    const sent: JobProgress[] = [];
    const meter = createMeter((progress) => sent.push(progress));
    meter.update({ phase: 'flush', done: 1 << 30, total: 1 << 30 });
    expect(sent[0]!.percent).toBeLessThan(100);
    expect(((sent[0]!.done / sent[0]!.total) * 100).toFixed(2)).not.toBe('100.00');
    expect(meter.finish()).toMatchObject({ done: 1 << 30, total: 1 << 30, percent: 100, eta: 0 });
  });

  it('says 100 % of nothing too, and nothing for an operation that never told', () => {
    const meter = createMeter(() => undefined);
    expect(meter.finish()).toBeUndefined();
    meter.update({ phase: 'copy', done: 0, total: 0 });
    expect(meter.finish()).toMatchObject({ done: 0, total: 0, percent: 100 });
  });
});

describe('output', () => {
  it('keeps the order, joins small pieces and cuts large ones', async () => {
    const sent: { stream: string; text?: string; entries?: unknown[] }[] = [];
    const pacer = createPacer(new AbortController().signal);
    const output = createOutput('j', (json) => sent.push(JSON.parse(json)), pacer);
    output.write({ stream: 'stdout', text: 'a\n' });
    output.write({ stream: 'stdout', text: 'b\n' });
    output.write({ stream: 'stderr', text: 'c\n' });
    output.write({ stream: 'stdout', text: '😀'.repeat(20_001) });
    await output.finish();
    expect(sent.slice(0, 2)).toEqual([
      { id: 'j', stream: 'stdout', text: 'a\nb\n' },
      { id: 'j', stream: 'stderr', text: 'c\n' },
    ]);
    const rest = sent.slice(2).map((each) => each.text!);
    expect(rest.length).toBeGreaterThan(2);
    expect(rest.join('')).toBe('😀'.repeat(20_001));
    expect(rest.every((text) => !/[\ud800-\udfff]/u.test(text))).toBe(true);
  });

  it('sends a lone small piece soon', async () => {
    const sent: string[] = [];
    const output = createOutput('j', (json) => sent.push(json), createPacer(new AbortController().signal));
    output.write({ stream: 'stdout', text: 'x' });
    expect(sent.length).toBe(0);
    await vi.advanceTimersByTimeAsync(0);
    expect(sent.length).toBe(1);
  });

  it('holds the operation while readers are behind', async () => {
    const sent: string[] = [];
    const pacer = createPacer(new AbortController().signal);
    const output = createOutput('j', (json) => sent.push(json), pacer);
    for (let n = 0; n < 200; n++) output.write({ stream: 'stdout', text: 'x'.repeat(16_384) });
    const first = sent.reduce((sum, json) => sum + json.length, 0);
    expect(first).toBeLessThan(600_000);
    const pace = pacer.pace(0);
    expect(pace).toBeInstanceOf(Promise);
    const finished = output.finish();
    for (let at = 0; at < sent.length; at++) output.ack(sent[at]!.length);
    await pace;
    await finished;
    expect(sent.length).toBe(200);
  });

  it('leaves trace events out that nobody reads, says how many, and nothing else', async () => {
    const sent: string[] = [];
    const pacer = createPacer(new AbortController().signal);
    const output = createOutput('j', (json) => sent.push(json), pacer);
    const line = `${'x'.repeat(99)}\n`;
    const events = 200_000;
    for (let n = 0; n < events; n++) output.write({ stream: 'trace', text: line });
    output.write({ stream: 'stderr', text: 'warning\n' });
    const finished = output.finish();
    for (let at = 0; at < sent.length; at++) output.ack(sent[at]!.length);
    await finished;
    const texts = sent.map((json) => JSON.parse(json) as { stream: string; text: string });
    const bytes = texts.reduce((sum, { text }) => sum + text.length, 0);
    expect(bytes).toBeLessThan(6 * 1024 * 1024);
    expect(texts.filter(({ stream }) => stream === 'stderr')).toMatchObject([{ text: 'warning\n' }]);
    const lines = texts
      .filter(({ stream }) => stream === 'trace')
      .flatMap(({ text }) => text.match(/.+\n/g)!);
    const dropped = Number(/^trace_dropped events (\d+)\n$/.exec(lines.pop()!)![1]);
    expect(lines.length + dropped).toBe(events);
    expect(lines.length).toBeGreaterThan(30_000);
  });
});
