/**
 * Prometheus' text format, version 0.0.4: counters, gauges and histograms with labels. prom-client is not used: what is needed
 * of it is these few lines, for which it would take 11 MB of memory and 45 ms of every start.
 */

export type Labels = Readonly<Record<string, string>>;
/** A value with its labels. */
export type Sample = readonly [labels: Labels, value: number];

interface Family {
  readonly name: string;
  readonly help: string;
  readonly type: 'counter' | 'gauge' | 'histogram';
  lines(name: string): string[];
}

function escapeLabel(text: string): string {
  return text.replace(/[\\"\n]/g, (char) => (char === '\n' ? '\\n' : `\\${char}`));
}

function line(name: string, labels: Labels, value: number): string {
  const pairs = Object.entries(labels).map(([label, text]) => `${label}="${escapeLabel(text)}"`);
  const shown = Number.isNaN(value) ? 'NaN' : value === Infinity ? '+Inf' : String(value);
  return `${name}${pairs.length === 0 ? '' : `{${pairs.join(',')}}`} ${shown}`;
}

/** Labels in the order of their first use make a series: callers name them in one order. */
class Series<T> {
  readonly #series = new Map<string, { readonly labels: Labels; readonly value: T }>();
  readonly #create: () => T;

  constructor(create: () => T) {
    this.#create = create;
  }

  get(labels: Labels): { readonly labels: Labels; value: T } {
    const key = JSON.stringify(labels);
    let found = this.#series.get(key);
    if (found === undefined) {
      found = { labels, value: this.#create() };
      this.#series.set(key, found);
    }
    return found;
  }

  all(): Iterable<{ readonly labels: Labels; readonly value: T }> {
    return this.#series.values();
  }
}

export interface Counter {
  add(labels?: Labels, by?: number): void;
}

export interface Histogram {
  observe(labels: Labels, value: number): void;
}

export class Exposition {
  readonly #families: Family[] = [];

  /** Only grows; the name ends in `_total`. */
  counter(name: string, help: string): Counter {
    const series = new Series(() => 0);
    const lines = (full: string): string[] =>
      [...series.all()].map((each) => line(full, each.labels, each.value));
    this.#families.push({ name, help, type: 'counter', lines });
    return {
      add(labels = {}, by = 1) {
        series.get(labels).value += by;
      },
    };
  }

  /** Asked for when somebody looks. `type`: what is read may be a count that only grows. */
  gauge(
    name: string,
    help: string,
    read: () => number | Iterable<Sample>,
    type: 'gauge' | 'counter' = 'gauge',
  ): void {
    const lines = (full: string): string[] => {
      const value = read();
      if (typeof value === 'number') return [line(full, {}, value)];
      return [...value].map(([labels, each]) => line(full, labels, each));
    };
    this.#families.push({ name, help, type, lines });
  }

  /** @param bounds upper bounds of the buckets, ascending. */
  histogram(name: string, help: string, bounds: readonly number[]): Histogram {
    const series = new Series(() => ({ counts: bounds.map(() => 0), sum: 0, count: 0 }));
    const lines = (full: string): string[] =>
      [...series.all()].flatMap(({ labels, value }) => [
        ...bounds.map((bound, at) =>
          line(`${full}_bucket`, { ...labels, le: String(bound) }, value.counts[at]!),
        ),
        line(`${full}_bucket`, { ...labels, le: '+Inf' }, value.count),
        line(`${full}_sum`, labels, value.sum),
        line(`${full}_count`, labels, value.count),
      ]);
    this.#families.push({ name, help, type: 'histogram', lines });
    return {
      observe(labels, value) {
        const found = series.get(labels).value;
        // Buckets count all that is not above them.
        bounds.forEach((bound, at) => {
          if (value <= bound) found.counts[at]!++;
        });
        found.sum += value;
        found.count++;
      },
    };
  }

  text(): string {
    const blocks = this.#families.map(({ name, help, type, lines }) =>
      [`# HELP ${name} ${help.replace(/[\\\n]/g, ' ')}`, `# TYPE ${name} ${type}`, ...lines(name)].join('\n'),
    );
    return `${blocks.join('\n')}\n`;
  }
}
