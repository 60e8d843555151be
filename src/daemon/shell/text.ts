/** What the commands at a shell print for people. */
import type { ImageInspectResult } from '../../protocol/commands/image-inspect.js';
import type { JobInfo } from '../../protocol/commands/jobs.js';
import type { EventParams } from '../../protocol/events.js';

/** What others have written must not move a terminal's cursor. */
export function visible(text: string): string {
  return text.replace(/\p{Cc}|\p{Cf}/gu, (char) => `\\u{${char.codePointAt(0)!.toString(16)}}`);
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

export function bytes(count: number): string {
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

export function duration(seconds: number): string {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

/** Columns, each as wide as it must be; no spaces at the ends of lines. */
export function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const line = (row: readonly string[]): string =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd();
  return `${rows.map(line).join('\n')}\n`;
}

export interface Status {
  readonly status: string;
  readonly pid: number;
  readonly uptime: number;
  readonly jobs: Readonly<Record<string, number>>;
  readonly workers: {
    readonly busy: number;
    readonly idle: number;
    readonly limit: number;
    readonly lost: number;
  };
  readonly nodes: number;
  readonly connections: number;
  readonly subscriptions: number;
  readonly memory: { readonly rss: number };
}

export function statusText(status: Status, version: string): string {
  const { workers } = status;
  const jobs = Object.entries(status.jobs).map(([state, count]) => `${count} ${state}`);
  const lost = workers.lost === 0 ? '' : `, ${workers.lost} lost`;
  return table([
    ['imgd', `${version}, ${status.status}, process ${status.pid}, up ${duration(status.uptime)}`],
    ['jobs', jobs.length === 0 ? 'none' : jobs.join(', ')],
    ['workers', `${workers.busy} busy, ${workers.idle} idle, at most ${workers.limit} jobs at once${lost}`],
    ...(status.nodes === 0 ? [] : [['images', `${status.nodes} held`]]),
    ['clients', `${status.connections} connected, ${status.subscriptions} subscriptions to events`],
    ['memory', bytes(status.memory.rss)],
  ]);
}

function progressText({ progress, status, error, 'queue-position': position }: JobInfo): string {
  if (status === 'concluded') return error === undefined ? 'done' : visible(error);
  if (progress === undefined) return position === undefined ? '' : `place ${position} in the queue`;
  const { percent, done, total, rate, eta } = progress;
  return [
    `${percent.toFixed(2)} %`,
    `${bytes(done)} of ${bytes(total)}`,
    ...(rate === undefined ? [] : [`${bytes(rate)}/s`]),
    ...(eta === undefined ? [] : [`${duration(eta)} left`]),
  ].join(', ');
}

export function jobsText(jobs: readonly JobInfo[], now: number): string {
  if (jobs.length === 0) return 'no jobs\n';
  return table([
    ['ID', 'OPERATION', 'STATE', 'AGE', 'PROGRESS'],
    ...jobs.map((job) => [
      job.id,
      job.type,
      job.status,
      duration(Math.max(0, now - job.created) / 1000),
      progressText(job),
    ]),
  ]);
}

export function eventText({ timestamp, event, data, lagged }: EventParams): string {
  const time = new Date(timestamp.seconds * 1000 + timestamp.microseconds / 1000).toISOString();
  const members = Object.entries(data as Readonly<Record<string, unknown>>).map(([name, value]) => {
    const text = typeof value === 'string' ? value : JSON.stringify(value);
    return `${name}=${visible(text)}`;
  });
  const missed = lagged === undefined ? [] : [`(${lagged} before it left out)`];
  return `${[time, event, ...members, ...missed].join(' ')}\n`;
}

export function inspectText(report: ImageInspectResult): string {
  const size = report['virtual-size'];
  const rows = report.checks.map(({ name, status, text, names = [] }) => [
    status.toUpperCase(),
    name,
    visible(names.length === 0 ? text : `${text}: ${names.join(', ')}`),
  ]);
  const guest = size === undefined ? '' : `, ${bytes(size)} for the guest`;
  return (
    `${visible(report.filename)}: ${report.format}${guest}, a file of ${bytes(report['file-size'])}\n` +
    `${table(rows)}${report.safe ? 'safe' : 'NOT SAFE'}\n`
  );
}
