/** docs/rpc.md: every command from its declaration. */
import type { GenericSchema } from 'valibot';
import { BlockDeviceInfo, BlockdevOptions } from '../../src/protocol/commands/blockdev.js';
import { FormatOptions, ImageRef, UserObject } from '../../src/protocol/commands/common.js';
import { DryRunPlan } from '../../src/protocol/commands/dry-run.js';
import { EventFilter } from '../../src/protocol/commands/events.js';
import { ImageInfo } from '../../src/protocol/commands/image-info.js';
import { ImageUser } from '../../src/protocol/commands/image-users.js';
import { type CommandName, commands } from '../../src/protocol/commands/index.js';
import { JobInfo, JobOptions, JobProgress, JobStatus } from '../../src/protocol/commands/jobs.js';
import { codeOfKind, ErrorData, WireError } from '../../src/protocol/errors.js';
import { EVENT_METHOD, events } from '../../src/protocol/events.js';
import { DISCOVER, roleNeeded } from '../../src/protocol/roles.js';
import { type Comments, commentOf } from './comments.js';
import { type Member, membersOf, type Parts, parts, typeOf } from './schema.js';

const types: Readonly<Record<string, GenericSchema>> = {
  ImageRef,
  FormatOptions,
  UserObject,
  BlockdevOptions,
  BlockDeviceInfo,
  ImageInfo,
  ImageUser,
  DryRunPlan,
  EventFilter,
  JobOptions,
  JobStatus,
  JobInfo,
  JobProgress,
  WireError,
  ErrorData,
};
/** Those that stand in params. */
const asked = new Set(['ImageRef', 'UserObject', 'BlockdevOptions', 'EventFilter', 'JobOptions']);
const named = new Map<unknown, string>(Object.entries(types).map(([name, schema]) => [schema, name]));

const FOREWORD = `# JSON-RPC reference

Made from the declarations in \`src/protocol\` by \`npm run docs\`: do not edit.

imgd speaks JSON-RPC 2.0: on its Unix socket one message a line, on WebSocket one message a frame, and by HTTP \`POST\` to \`/rpc\` on
both (without events). Batches are taken. \`${DISCOVER}\` answers with the same as below as an OpenRPC document. Params are always
objects: members have names. A member that is not known is refused.

An **operation** (a command that runs as a job) takes \`job\` ([JobOptions](#joboptions)) beside its own params. It is answered with its
result when it has concluded or, with \`"wait": false\`, at once with \`{"job": ID}\`; [job-wait](#job-wait) tells the result then.

Over TCP a client shows a bearer token, and the token's role says what it may call: \`watch\`, \`operate\` or \`admin\`, each with what those
before it may.
`;

/** A table cell. */
const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

/** Of params members are marked that must be there, of what the daemon tells those that need not be. */
type Side = 'asked' | 'told';

function rows(schema: Parts, owner: string, side: Side, comments: Comments, prefix = ''): string[] {
  return membersOf(schema, named).flatMap((member) => {
    const doc = commentOf(comments, owner, member.name) ?? '';
    const row = `| ${'`'}${prefix}${member.name}${'`'} | ${cell(typeOfMember(member, side))} | ${cell(doc)} |`;
    if (member.inner === undefined) return [row];
    const list = member.type.startsWith('array') ? '[]' : '';
    return [
      row,
      ...rows(member.inner, `${owner}.${member.name}`, side, comments, `${prefix}${member.name}${list}.`),
    ];
  });
}

function typeOfMember({ type, required, default: value }: Member, side: Side): string {
  if (side === 'told') return required ? type : `${type}; optional`;
  if (required) return `${type}; **required**`;
  return value === undefined ? type : `${type}; default \`${JSON.stringify(value)}\``;
}

function table(
  schema: Parts,
  owner: string,
  side: Side,
  comments: Comments,
  extra: readonly string[] = [],
): string {
  const body = [...rows(schema, owner, side, comments), ...extra];
  if (body.length === 0) return '';
  return `| member | type | |\n|---|---|---|\n${body.join('\n')}\n`;
}

/** `imageConvert`: the name under which a command is declared. */
const constOf = (name: string): string => name.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());

function section(name: CommandName, comments: Comments): string {
  const { doc, params, result, errors, job } = commands[name];
  const owner = constOf(name);
  const open = parts(params).type === 'loose_object';
  const jobRow = '| `job` | [JobOptions](#joboptions) | How the job runs. |';
  const takes = table(parts(params), `${owner}.params`, 'asked', comments, job ? [jobRow] : []);
  const answers = answer(parts(result), `${owner}.result`, comments);
  const kinds = errors.map((kind) => `\`${kind}\``).join(', ');
  return [
    `### ${name}\n`,
    `${doc}\n`,
    `${job ? 'Operation. ' : ''}Role: \`${roleNeeded(name)}\`.\n`,
    takes === '' ? 'Params: none.\n' : `Params${open ? ' (other members are passed on)' : ''}:\n\n${takes}`,
    answers,
    errors.length === 0 ? '' : `Errors: ${kinds}.\n`,
  ]
    .filter((part) => part !== '')
    .join('\n');
}

function answer(schema: Parts, owner: string, comments: Comments): string {
  const type = typeOf(schema, named);
  if (type === 'object') {
    const body = table(schema, owner, 'told', comments);
    return body === '' ? 'Result: `{}`.\n' : `Result:\n\n${body}`;
  }
  const inner = schema.type === 'array' && !named.has(schema.item) ? schema.item : undefined;
  const body = inner?.entries === undefined ? '' : `\n${table(inner, owner, 'told', comments)}`;
  return `Result: ${type}.\n${body}`;
}

function typeSection(name: string, schema: GenericSchema, comments: Comments): string {
  const body = parts(schema);
  const doc = comments.get(name);
  const head = `### ${name}\n\n${doc === undefined ? '' : `${doc}\n\n`}`;
  const own = new Map([...named].filter(([each]) => each !== schema));
  if (body.entries !== undefined || body.type === 'variant')
    return head + table(body, name, asked.has(name) ? 'asked' : 'told', comments);
  return `${head}${typeOf(body, own)}.\n`;
}

function eventSection(name: string, schema: GenericSchema, comments: Comments): string {
  const body = parts(schema);
  const declared = [...comments.keys()].find((each) => declaredAs(each, name));
  const doc = declared === undefined ? '' : `${comments.get(declared)}\n\n`;
  return `### ${name}\n\n${doc}${table(body, declared ?? '', 'told', comments)}`;
}

/** `JobStatusChange` and `JobProgressEvent` declare JOB_STATUS_CHANGE and JOB_PROGRESS; BlockdevChange several. */
function declaredAs(declared: string, event: string): boolean {
  const camel = event.toLowerCase().replace(/(?:^|_)(.)/g, (_, letter: string) => letter.toUpperCase());
  if (declared === camel || declared === `${camel}Event`) return true;
  return (
    declared === 'BlockdevChange' && ['BlockdevAdded', 'BlockdevRemoved', 'BlockdevReopened'].includes(camel)
  );
}

function errorSection(comments: Comments): string {
  const lines = Object.entries(codeOfKind).map(
    ([kind, code]) => `| \`${kind}\` | ${code} | ${cell(comments.get(`codeOfKind.${kind}`) ?? '')} |`,
  );
  return `Every error has a JSON-RPC code, a message for people, and \`data\` ([ErrorData](#errordata)) for programs: its \`kind\` is what
to look at.

| kind | code | |
|---|---|---|
${lines.join('\n')}
`;
}

export function rpcReference(comments: Comments): string {
  const names = Object.keys(commands) as CommandName[];
  const list = (job: boolean): string =>
    names
      .filter((name) => commands[name].job === job)
      .map(
        (name) =>
          `- [${name}](#${name}): ${commands[name].doc.split(/(?<=[.:])\s/)[0]!.replace(/[.:]$/, '')}`,
      )
      .join('\n');
  const all = (job: boolean): string =>
    names
      .filter((name) => commands[name].job === job)
      .map((name) => section(name, comments))
      .join('\n');
  return [
    FOREWORD,
    `Operations:\n\n${list(true)}\n`,
    `Commands:\n\n${list(false)}\n`,
    `[Events](#events), [types](#types), [errors](#errors).\n`,
    `## Operations\n\n${all(true)}`,
    `## Commands\n\n${all(false)}\n### ${DISCOVER}\n\nAnswers with the OpenRPC document of all commands.\n\nRole: \`${roleNeeded(DISCOVER)}\`.\n`,
    `## Events\n\nNotifications \`${EVENT_METHOD}\`, after [events-subscribe](#events-subscribe): params \`{ subscription, seq, timestamp, event, data, lagged? }\`.
\`seq\` numbers all events of the daemon upwards. \`data\` of each event:\n\n${Object.entries(events)
      .map(([name, schema]) => eventSection(name, schema, comments))
      .join('\n')}`,
    `## Types\n\n${Object.entries(types)
      .map(([name, schema]) => typeSection(name, schema, comments))
      .join('\n')}`,
    `## Errors\n\n${errorSection(comments)}`,
  ].join('\n');
}
