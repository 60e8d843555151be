/** What the main thread and the engine thread, which holds the images, say to each other. */
import type { OpenPolicy } from '../../engine/node/gate.js';
import type { UserObject } from '../../protocol/commands/common.js';
import type { ControlMessage, Failure, FromWorker, RunMessage } from '../workers/messages.js';
import type { BitmapChange } from './node-bitmaps.js';
import type { NodeChange } from './nodes.js';

export interface EngineData {
  /** URL of the module that exports `runOperation`. */
  readonly engine: string;
  readonly owners: Int32Array;
  readonly policy: OpenPolicy;
  /** The throttle groups that there are. */
  readonly groups: readonly UserObject[];
}

export type EngineCall =
  | { readonly method: 'add'; readonly options: unknown; readonly cwd: string; readonly owner: number }
  | { readonly method: 'del'; readonly node: string }
  | { readonly method: 'reopen'; readonly options: readonly unknown[] }
  | { readonly method: 'query'; readonly flat: boolean }
  | { readonly method: 'bitmaps'; readonly node: string }
  | { readonly method: 'bitmap'; readonly change: BitmapChange }
  | { readonly method: 'group-add'; readonly object: UserObject }
  | { readonly method: 'group-del'; readonly id: string }
  | { readonly method: 'users' | 'close' };

export type ToEngine =
  | RunMessage
  | { readonly type: 'control'; readonly job: string; readonly control: ControlMessage }
  | { readonly type: 'call'; readonly id: number; readonly call: EngineCall }
  | { readonly type: 'ping' };

export type FromEngine =
  | { readonly type: 'job'; readonly job: string; readonly message: FromWorker }
  | { readonly type: 'answer'; readonly id: number; readonly json: string }
  | { readonly type: 'refused'; readonly id: number; readonly failure: Failure }
  | { readonly type: 'change'; readonly change: NodeChange }
  | { readonly type: 'pong' };
