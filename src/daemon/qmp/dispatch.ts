/** The table of QMP's commands: who may call what, with which arguments, and what is answered. */
import { flatJson } from '../../protocol/dictionary.js';
import { type Json, plain } from '../../protocol/json-tokens.js';
import { covers, type Role } from '../../protocol/roles.js';
import { type Call, RawJson } from '../sessions/rpc.js';
import { checkArguments } from './check.js';
import type { QapiObject, QapiType } from './qapi.js';
import { QmpError } from './reply.js';

export interface QmpCommand {
  readonly name: string;
  readonly arguments: QapiObject;
  readonly result: QapiType;
  readonly role: Role;
  readonly oob: boolean;
  /** @param given checked. */
  run(given: unknown, call: Call): unknown;
}

export interface QmpCommands {
  /** QAPI's VersionInfo, as JSON. */
  readonly version: string;
  /** The arguments as values, if they are right. */
  check(name: string, given: { readonly [member: string]: Json }): unknown;
  /** The result as JSON text. */
  run(name: string, given: { readonly [member: string]: Json }, oob: boolean, call: Call): Promise<string>;
  /** Told of what a command throws that is no error of it. */
  bug(error: unknown): void;
}

export function createDispatch(
  table: ReadonlyMap<string, QmpCommand>,
  version: string,
  bug: (error: unknown) => void,
): QmpCommands {
  function find(name: string): QmpCommand {
    const command = table.get(name);
    if (command !== undefined) return command;
    throw new QmpError(`The command ${name.slice(0, 128)} has not been found`, 'CommandNotFound');
  }

  function check(command: QmpCommand, given: { readonly [member: string]: Json }): unknown {
    checkArguments(command.arguments, given);
    return plain(given as Json);
  }

  return {
    version,
    bug,
    check: (name, given) => check(find(name), given),
    async run(name, given, oob, call) {
      const command = find(name);
      if (oob && !command.oob) throw new QmpError(`The command ${name} does not support OOB`);
      const { role } = call.session;
      if (!covers(role, command.role)) {
        throw new QmpError(`'${name}' needs the role '${command.role}', this client has '${role}'`);
      }
      const result = await command.run(check(command, given), call);
      return result instanceof RawJson ? result.text : flatJson(result ?? {});
    },
  };
}
