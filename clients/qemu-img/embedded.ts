/** Operations run in this process: the engine is loaded when the first one starts. */
import { RequestError } from './errors.js';
import { exitBy } from './exit.js';
import type { Transport } from './transport.js';

export const embedded: Transport = {
  async run(method, params, listeners, signal) {
    const { createPacer, exitNow, runOperation } = await import('../../src/engine/index.js');
    exitBy(exitNow);
    // A listener that throws (a map that cannot be shown) ends the operation.
    const stop = new AbortController();
    const either = AbortSignal.any([signal, stop.signal]);
    const pacer = createPacer(either);
    let thrown: unknown;
    const guarded = (tell: () => void) => {
      if (stop.signal.aborted) return;
      try {
        tell();
      } catch (error) {
        thrown = error;
        stop.abort();
      }
    };
    const outcome = await runOperation(method as never, params, {
      cwd: process.cwd(),
      // As permissive as the reference's command line is.
      policy: {},
      signal: either,
      progress: (progress) => guarded(() => listeners.onProgress(progress)),
      output: (output) =>
        guarded(() => {
          if (output.stream === 'entries') listeners.onEntries(output.entries);
          else if (output.stream === 'trace') listeners.onTrace(output.text);
          else listeners.onText(output.stream, output.text);
        }),
      pace: (bytes) => pacer.pace(bytes),
      setRate: (rate) => pacer.setRate(rate),
    });
    if (thrown !== undefined) throw thrown;
    if (outcome.isOk()) return { result: outcome.value };
    const { message, kind, context } = outcome.error;
    return { error: new RequestError(message, kind, context.hint) };
  },
};
