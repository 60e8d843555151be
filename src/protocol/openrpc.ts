/** The OpenRPC document of all commands: what `rpc.discover` answers. */
import type { GenericSchema } from 'valibot';
import { type CommandName, commands } from './commands/index.js';
import { JobOptions, JobStarted } from './commands/jobs.js';
import { codeOfKind, ErrorData, type WireErrorKind } from './errors.js';
import { EVENT_METHOD, events } from './events.js';
import { type JsonSchema, toJsonSchema } from './json-schema.js';
import { DISCOVER, roleNeeded } from './roles.js';

interface ContentDescriptor {
  readonly name: string;
  readonly required?: boolean;
  readonly schema: JsonSchema;
}

export interface OpenRpcMethod {
  readonly name: string;
  readonly summary: string;
  readonly description: string;
  readonly paramStructure: 'by-name';
  readonly params: readonly ContentDescriptor[];
  readonly result: ContentDescriptor;
  readonly errors: readonly { readonly code: number; readonly message: string; readonly data: JsonSchema }[];
  /** The role that a token must have. */
  readonly 'x-imgd-role': string;
  /** Takes `job`, and runs as one. */
  readonly 'x-imgd-job': boolean;
  /** Other members than those listed are passed on. */
  readonly 'x-imgd-open-params'?: true;
}

export interface OpenRpc {
  readonly openrpc: string;
  readonly info: {
    readonly title: string;
    readonly version: string;
    readonly license: { readonly name: string };
  };
  readonly methods: readonly OpenRpcMethod[];
  readonly components: { readonly schemas: Readonly<Record<string, JsonSchema>> };
  /** OpenRPC has no notifications from the server: data of each event by its name, and the method that carries them. */
  readonly 'x-imgd-events': { readonly method: string; readonly data: Readonly<Record<string, JsonSchema>> };
}

const REF = '#/components/schemas/';

/** A command's own params and, of an operation, `job`. */
function paramsOf(schema: GenericSchema, job: boolean): readonly ContentDescriptor[] {
  const { properties = {}, required = [] } = toJsonSchema(schema) as {
    properties?: Readonly<Record<string, JsonSchema>>;
    required?: readonly string[];
  };
  const own = Object.entries(properties).map(([name, member]) => ({
    name,
    required: required.includes(name),
    schema: member,
  }));
  // OpenRPC wants those that must be there first.
  own.sort((a, b) => Number(b.required) - Number(a.required));
  return job ? [...own, { name: 'job', required: false, schema: { $ref: `${REF}JobOptions` } }] : own;
}

function describe(name: CommandName): OpenRpcMethod {
  const { doc, params, result, errors, job } = commands[name];
  const schema: GenericSchema = params;
  const answer = toJsonSchema(result);
  return {
    name,
    summary: doc.split(/(?<=[.:]) /)[0]!,
    description: doc,
    paramStructure: 'by-name',
    params: paramsOf(schema, job),
    result: {
      name: 'result',
      // With `job.wait` false an operation is answered before it has its result.
      schema: job ? { anyOf: [answer, { $ref: `${REF}JobStarted` }] } : answer,
    },
    errors: errors.map((kind) => ({
      code: codeOfKind[kind as WireErrorKind],
      message: kind,
      data: { $ref: `${REF}ErrorData` },
    })),
    'x-imgd-role': roleNeeded(name),
    'x-imgd-job': job,
    ...(schema.type === 'loose_object' ? { 'x-imgd-open-params': true } : {}),
  };
}

/** @param version imgd's. */
export function openRpc(version: string): OpenRpc {
  const eventData = Object.entries(events).map(([name, schema]) => [name, toJsonSchema(schema)] as const);
  return {
    openrpc: '1.3.2',
    info: { title: 'imgd', version, license: { name: 'MIT' } },
    methods: [
      ...(Object.keys(commands) as CommandName[]).map(describe),
      {
        name: DISCOVER,
        summary: 'Answers with this document.',
        description: 'Answers with this document.',
        paramStructure: 'by-name',
        params: [],
        result: { name: 'result', schema: { type: 'object' } },
        errors: [],
        'x-imgd-role': roleNeeded(DISCOVER),
        'x-imgd-job': false,
      },
    ],
    components: {
      schemas: {
        JobOptions: toJsonSchema(JobOptions),
        JobStarted: toJsonSchema(JobStarted),
        ErrorData: toJsonSchema(ErrorData),
      },
    },
    'x-imgd-events': { method: EVENT_METHOD, data: Object.fromEntries(eventData) },
  };
}
