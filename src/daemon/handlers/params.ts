/** Validation of params: what is wrong is said in one sentence that names the member. */
import * as v from 'valibot';
import { rpcError } from '../sessions/rpc-error.js';

/** Params by `schema`, defaults filled in. Throws `invalid-params`. */
export function parseParams<S extends v.GenericSchema>(
  schema: S,
  params: unknown,
  prefix = '',
): v.InferOutput<S> {
  if (Array.isArray(params)) throw rpcError('invalid-params', 'params must be an object: members have names');
  const parsed = v.safeParse(schema, params ?? {}, { abortEarly: true });
  if (parsed.success) return parsed.output;
  const issue = parsed.issues[0];
  const member = prefix + (v.getDotPath(issue) ?? '');
  const where = member === '' ? 'params' : `'${member}'`;
  throw rpcError(
    'invalid-params',
    `Invalid params: ${describe(issue, where)}`,
    member === '' ? {} : { member },
  );
}

function describe(issue: v.BaseIssue<unknown>, where: string): string {
  if (issue.type === 'strict_object') {
    if (issue.expected === 'never') return `${where} is not a member that is known here`;
    if (issue.received === 'undefined') return `${where} is missing`;
  }
  const expected = issue.expected === null ? undefined : readable(issue.expected);
  if (expected === undefined) return `${where}: ${issue.message}`;
  if (issue.received === 'undefined') return `${where} is missing (${expected} expected)`;
  // A string that a client sent may be a secret: only its type is told, unless one of a few words is expected.
  if (issue.kind === 'schema' && issue.type !== 'picklist') {
    const received = issue.received.startsWith('"') ? 'a string' : readable(issue.received);
    return `${where} must be ${expected}, not ${received}`;
  }
  if (issue.type === 'regex') return `${where}: ${issue.message}`;
  return `${where} must be ${expected}, not ${issue.received.slice(0, 60)}`;
}

function readable(type: string): string {
  const names: Readonly<Record<string, string>> = {
    string: 'a string',
    number: 'a number',
    boolean: 'true or false',
    Object: 'an object',
    Array: 'an array',
    null: 'null',
  };
  return names[type] ?? type.replace(/^\((.*)\)$/, '$1').replaceAll(' | ', ' or ');
}
