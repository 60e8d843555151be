/** Types of all calls, from the declarations that the daemon checks by. */
import type { GenericSchema, InferInput, InferOutput } from 'valibot';
import type { CommandDeclaration, ResultOf } from '../../src/protocol/command.js';
import type { CommandName, commands, OperationName } from '../../src/protocol/commands/index.js';
import type { JobOptions } from '../../src/protocol/commands/jobs.js';
import type { EventParams, subscribableEvents } from '../../src/protocol/events.js';

export type { CommandName, OperationName };

type InputOf<C> = C extends CommandDeclaration<infer P, GenericSchema> ? InferInput<P> : never;

/** What a command takes: members that have defaults may be left out. */
export type Params<N extends CommandName> = InputOf<(typeof commands)[N]>;
export type Result<N extends CommandName> = ResultOf<(typeof commands)[N]>;

/** Of an operation's job: see JobOptions in docs/rpc.md. Whether the call waits is the SDK's choice. */
export type JobSettings = Omit<InferInput<typeof JobOptions>, 'wait'>;

export interface CallOptions {
  /** Aborting an operation that is waited for cancels its job: the call ends, as `cancelled`, when the job has. */
  readonly signal?: AbortSignal;
}

export interface OperationOptions extends CallOptions {
  readonly job?: JobSettings;
}

export type OptionsOf<N extends CommandName> = N extends OperationName ? OperationOptions : CallOptions;

/** Arguments behind the name: params may be left out where nothing in them must be there. */
export type Arguments<N extends CommandName, O> =
  Record<never, never> extends Params<N>
    ? [params?: Params<N>, options?: O]
    : [params: Params<N>, options?: O];

type Camel<S extends string> = S extends `${infer Head}-${infer Tail}`
  ? `${Head}${Capitalize<Camel<Tail>>}`
  : S;

/** `client.imageInfo(...)` for `client.call('image-info', ...)`, and so on for each command. */
export type Methods = {
  readonly [N in CommandName as Camel<N>]: (...args: Arguments<N, OptionsOf<N>>) => Promise<Result<N>>;
};

export type SubscribableEvent = (typeof subscribableEvents)[number];

/** An event with its data; `event` tells which. */
export type ImgdEvent<N extends SubscribableEvent = SubscribableEvent> = {
  readonly [E in N]: Omit<EventParams<E>, 'subscription'>;
}[N];

export type OutputOf = InferOutput<typeof import('../../src/protocol/events.js')['events']['JOB_OUTPUT']>;
