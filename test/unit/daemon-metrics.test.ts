/** Prometheus' text format. */
import { describe, expect, it } from 'vitest';
import { Exposition } from '../../src/daemon/metrics/exposition.js';

describe('the exposition', () => {
  it('writes counters, gauges and histograms', () => {
    const all = new Exposition();
    const counter = all.counter('a_total', 'All\nof them.');
    counter.add({ kind: 'x"y\\z\n' }, 2);
    counter.add({ kind: 'x"y\\z\n' });
    all.gauge('b', 'One.', () => 0.5);
    all.gauge('c', 'Several.', () => [[{ s: '1' }, 1]]);
    const histogram = all.histogram('d_seconds', 'Times.', [1, 10]);
    for (const value of [0.5, 1, 5, 50]) histogram.observe({ of: 'x' }, value);
    all.counter('e_total', 'Nothing yet.');
    expect(all.text()).toBe(
      [
        '# HELP a_total All of them.',
        '# TYPE a_total counter',
        'a_total{kind="x\\"y\\\\z\\n"} 3',
        '# HELP b One.',
        '# TYPE b gauge',
        'b 0.5',
        '# HELP c Several.',
        '# TYPE c gauge',
        'c{s="1"} 1',
        '# HELP d_seconds Times.',
        '# TYPE d_seconds histogram',
        'd_seconds_bucket{of="x",le="1"} 2',
        'd_seconds_bucket{of="x",le="10"} 3',
        'd_seconds_bucket{of="x",le="+Inf"} 4',
        'd_seconds_sum{of="x"} 56.5',
        'd_seconds_count{of="x"} 4',
        '# HELP e_total Nothing yet.',
        '# TYPE e_total counter',
        '',
      ].join('\n'),
    );
  });
});
