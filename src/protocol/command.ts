/** The shape of a command's declaration. JSON-RPC, OpenRPC, the docs and the typed clients are projections of these. */
import type { GenericSchema, InferOutput } from 'valibot';

export interface CommandDeclaration<P extends GenericSchema, R extends GenericSchema> {
  /** JSON-RPC method name. */
  readonly name: string;
  /** One sentence, then what a caller must know. */
  readonly doc: string;
  readonly params: P;
  readonly result: R;
  /** Kinds of error (see errors.ts) that a caller should expect. */
  readonly errors: readonly string[];
  /** Runs as a job: takes `job` beside its own params, emits events, can be cancelled. */
  readonly job: boolean;
}

export function command<P extends GenericSchema, R extends GenericSchema>(
  declaration: CommandDeclaration<P, R>,
): CommandDeclaration<P, R> {
  return declaration;
}

export type ParamsOf<C> = C extends CommandDeclaration<infer P, GenericSchema> ? InferOutput<P> : never;
export type ResultOf<C> = C extends CommandDeclaration<GenericSchema, infer R> ? InferOutput<R> : never;
