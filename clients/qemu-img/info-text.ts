/** `qemu-img info` for people. */
import type { ImageInfo } from '../../src/protocol/commands/image-info.js';
import { orderedEntries } from './json.js';
import { dateText, sizeText } from './text.js';

interface Snapshot {
  readonly id: string;
  readonly name: string;
  readonly 'vm-state-size'?: number;
  readonly 'date-sec'?: number;
  readonly 'vm-clock-sec'?: number;
  readonly 'vm-clock-nsec'?: number;
  readonly icount?: number | string | undefined;
}

/** One image: the lines, each with its end. */
export function imageText(info: ImageInfo): string {
  const lines: string[] = [];
  nodeLines(info, '', '', lines);
  return lines.map((line) => `${line}\n`).join('');
}

/** One node: the image itself where `path` is empty, else the child at that path, indented. */
function nodeLines(info: ImageInfo, path: string, indent: string, lines: string[]): void {
  const say = (text: string) => lines.push(indent + text);
  const virtual = `${sizeText(info['virtual-size'])} (${info['virtual-size']} bytes)`;
  const actual = info['actual-size'] === undefined ? 'unavailable' : sizeText(info['actual-size']);
  // A node without children is a protocol's; the image itself is always told as an image.
  if (path === '' || (info.children ?? []).length > 0) {
    say(`image: ${info.filename}`);
    say(`file format: ${info.format}`);
    say(`virtual size: ${virtual}`);
  } else {
    say(`filename: ${info.filename}`);
    say(`protocol type: ${info.format}`);
    say(`file length: ${virtual}`);
  }
  say(`disk size: ${actual}`);
  if (info.encrypted) say('encrypted: yes');
  if (info['cluster-size'] !== undefined) say(`cluster_size: ${info['cluster-size']}`);
  if (info['dirty-flag']) say('cleanly shut down: no');
  const backing = info['backing-filename'];
  if (backing !== undefined) {
    const full = info['full-backing-filename'];
    if (full === undefined) say(`backing file: ${backing} (cannot determine actual path)`);
    else if (full !== backing) say(`backing file: ${backing} (actual path: ${full})`);
    else say(`backing file: ${backing}`);
    if (info['backing-filename-format'] !== undefined) {
      say(`backing file format: ${info['backing-filename-format']}`);
    }
  }
  if (info.snapshots !== undefined && info.snapshots.length > 0) {
    say('Snapshot list:');
    for (const line of snapshotTable(info.snapshots)) say(line);
  }
  const specific = info['format-specific']?.data as Readonly<Record<string, unknown>> | undefined;
  if (specific !== undefined && Object.values(specific).some((value) => value !== undefined)) {
    say('Format specific information:');
    specificLines(specific, `${indent}    `, lines);
  }
  for (const child of info.children ?? []) {
    const childPath = `${path}/${child.name}`;
    say(`Child node '${childPath}':`);
    nodeLines(child.info as unknown as ImageInfo, childPath, `${indent}    `, lines);
  }
}

/** The table of snapshots, its head line first; a header alone where there are none. */
export function snapshotTable(snapshots: readonly Snapshot[]): string[] {
  const row = (id: string, tag: string, size: string, date: string, clock: string, icount: string) =>
    [
      id.padEnd(7),
      tag.padEnd(16),
      size.padStart(8),
      date.padStart(19),
      clock.padStart(15),
      icount.padStart(10),
    ].join(' ');
  return [
    row('ID', 'TAG', 'VM_SIZE', 'DATE', 'VM_CLOCK', 'ICOUNT'),
    ...snapshots.map((each) =>
      row(
        each.id,
        each.name,
        sizeText(each['vm-state-size'] ?? 0),
        dateText(each['date-sec'] ?? 0),
        clockText(each['vm-clock-sec'] ?? 0, each['vm-clock-nsec'] ?? 0),
        String(each.icount ?? '--'),
      ),
    ),
  ];
}

function clockText(seconds: number, nanoseconds: number): string {
  const part = (value: number, digits: number) => String(Math.floor(value)).padStart(digits, '0');
  return `${part(seconds / 3600, 4)}:${part((seconds / 60) % 60, 2)}:${part(seconds % 60, 2)}.${part(nanoseconds / 1e6, 3)}`;
}

/** Nested members by indentation; `-` in names becomes a space, and members of lists are numbered. */
function specificLines(value: object, indent: string, lines: string[]): void {
  const members: [string, unknown][] = Array.isArray(value)
    ? value.map((each, index) => [`[${index}]`, each])
    : orderedEntries(value as Record<string, unknown>).map(([name, each]) => [
        name.replaceAll('-', ' '),
        each,
      ]);
  for (const [name, member] of members) {
    if (typeof member === 'object' && member !== null) {
      lines.push(`${indent}${name}:`);
      specificLines(member, `${indent}    `, lines);
    } else lines.push(`${indent}${name}: ${String(member)}`);
  }
}
