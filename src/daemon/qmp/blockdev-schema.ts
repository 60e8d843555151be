/** BlockdevOptions as QAPI's introspection shows them: what each driver takes, from the tables that the engine checks by. */
import { driverNames, loadDriver } from '../../engine/formats/index.js';
import { PROTOCOLS } from '../../engine/node/open-storage.js';
import type { OptionDeclaration } from '../../engine/node/option-table.js';
import { BlockdevOptions, blockdevAdd } from '../../protocol/commands/blockdev.js';
import { PROTOCOL_OPTIONS } from '../images/options.js';
import { EMPTY, type QapiMember, type QapiObject, type QapiType, qapiArguments } from './qapi.js';

const TYPES: Readonly<Record<OptionDeclaration['type'], QapiType>> = {
  string: { kind: 'builtin', name: 'str' },
  bool: { kind: 'builtin', name: 'bool' },
  number: { kind: 'builtin', name: 'int' },
  size: { kind: 'builtin', name: 'int' },
};

/** A node's name, or its options; these are as those of blockdev-add, which would not end. */
const REFERENCE: readonly QapiType[] = [
  { ...EMPTY, members: [{ name: 'driver', type: TYPES.string, optional: false }], open: true },
  TYPES.string,
];
const BlockdevRef: QapiType = { kind: 'alternate', of: REFERENCE };
const BlockdevRefOrNull: QapiType = {
  kind: 'alternate',
  of: [...REFERENCE, { kind: 'builtin', name: 'null' }],
};

const optional = (name: string, type: QapiType): QapiMember => ({ name, type, optional: true });

/** Arguments of blockdev-add, or with `nodes` alone those of one node of blockdev-reopen. */
export async function blockdevSchema(which: 'add' | 'reopen'): Promise<QapiObject> {
  const drivers = [...driverNames, ...PROTOCOLS];
  const variants = new Map<string, QapiObject>();
  for (const driver of drivers) variants.set(driver, { ...EMPTY, members: await membersOf(driver) });
  const { members } = qapiArguments(which === 'add' ? blockdevAdd.params : BlockdevOptions);
  const tag: QapiMember = { name: 'driver', type: { kind: 'enum', values: drivers }, optional: false };
  return { kind: 'object', members: [tag, ...members.slice(1)], tag: 'driver', variants };
}

async function membersOf(name: string): Promise<QapiMember[]> {
  if (PROTOCOLS.has(name)) {
    return Object.entries(PROTOCOL_OPTIONS[name] ?? {}).map(([option, type]) => ({
      name: option,
      type: protocolType(type),
      optional: option !== 'filename',
    }));
  }
  const driver = (await loadDriver(name))!;
  const members: QapiMember[] = [{ name: 'file', type: BlockdevRef, optional: false }];
  if (driver.supportsBacking) members.push(optional('backing', BlockdevRefOrNull));
  if (driver.createOptions?.some((option) => option.name === 'data_file') === true) {
    members.push(optional('data-file', BlockdevRef));
  }
  const nested = new Map<string, QapiMember[]>();
  for (const { name: option, type } of driver.openOptions) {
    const dot = option.indexOf('.');
    if (dot < 0) members.push(optional(option, TYPES[type]));
    else {
      const outer = option.slice(0, dot);
      nested.set(outer, [...(nested.get(outer) ?? []), optional(option.slice(dot + 1), TYPES[type])]);
    }
  }
  for (const [outer, inner] of nested) {
    const object: QapiType = { ...EMPTY, members: inner };
    const at = members.findIndex((member) => member.name === outer);
    // `overlap-check` is a word, or an object.
    if (at < 0) members.push(optional(outer, object));
    else members[at] = optional(outer, { kind: 'alternate', of: [members[at]!.type, object] });
  }
  return members;
}

function protocolType(type: string): QapiType {
  if (type.includes('|')) return { kind: 'enum', values: type.split('|') };
  if (type === 'integer') return TYPES.number;
  return type === 'boolean' ? TYPES.bool : TYPES.string;
}
