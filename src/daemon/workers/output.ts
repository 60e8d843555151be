/** Gathers what an operation says into messages of a fit size, and stops it while too much of that is on its way. */
import type { Output } from '../../engine/operations/context.js';
import type { Pacer } from '../../engine/operations/pacer.js';
import type { MapEntry } from '../../protocol/commands/image-map.js';

/** Characters of text and map entries in one message: large enough to be cheap, small enough for readers with a line limit. */
const TEXT_LIMIT = 16 * 1024;
const ENTRY_LIMIT = 256;

/** Bytes that may be on their way to readers before the operation has to wait. */
const WINDOW = 512 * 1024;

/**
 * Characters of messages that wait for room. Between two points at which the operation can wait it may trace a great deal:
 * what would be more than this is left out, and counted.
 */
const TRACE_LIMIT = 4 * 1024 * 1024;

export interface OutputQueue {
  write(output: Output): void;
  /** The readers took so many bytes. */
  ack(bytes: number): void;
  /** Resolves when everything has been sent; at once after `abandon`. */
  finish(): Promise<void>;
  /** The job was cancelled: nobody is waited for, what has not been sent is dropped. */
  abandon(): void;
}

export function createOutput(job: string, send: (json: string) => void, pacer: Pacer): OutputQueue {
  let stream: Output['stream'] | undefined;
  let text = '';
  let entries: MapEntry[] = [];
  let scheduled = false;
  /** Finished messages that the window has no room for. */
  const queue: string[] = [];
  let queued = 0;
  /** Trace events that were left out. */
  let dropped = 0;
  let inFlight = 0;
  let release: (() => void) | undefined;
  let emptied: (() => void) | undefined;
  let abandoned = false;

  function pump(): void {
    while (queue.length > 0 && inFlight < WINDOW) {
      const json = queue.shift()!;
      queued -= json.length;
      inFlight += json.length;
      send(json);
    }
    if (queue.length > 0) release ??= pacer.hold();
    else {
      release?.();
      release = undefined;
      emptied?.();
    }
  }

  function push(data: object): void {
    const json = JSON.stringify({ id: job, stream, ...data });
    queued += json.length;
    queue.push(json);
  }

  function flush(): void {
    if (text !== '') {
      for (let at = 0; at < text.length; ) {
        let end = Math.min(at + TEXT_LIMIT, text.length);
        // Not between the halves of a surrogate pair.
        if (end < text.length && (text.charCodeAt(end - 1) & 0xfc00) === 0xd800) end++;
        push({ text: text.slice(at, end) });
        at = end;
      }
      text = '';
    }
    if (entries.length > 0) {
      for (let at = 0; at < entries.length; at += ENTRY_LIMIT) {
        push({ entries: entries.slice(at, at + ENTRY_LIMIT) });
      }
      entries = [];
    }
    pump();
  }

  function append(output: Output): void {
    if (output.stream !== stream) {
      flush();
      stream = output.stream;
    }
    if (output.stream === 'entries') for (const entry of output.entries) entries.push(entry);
    else text += output.text;
  }

  function tellDropped(): void {
    if (dropped === 0) return;
    append({ stream: 'trace', text: `trace_dropped events ${dropped}\n` });
    dropped = 0;
  }

  return {
    write(output) {
      if (abandoned) return;
      if (output.stream === 'trace') {
        if (queued >= TRACE_LIMIT) {
          dropped++;
          return;
        }
        tellDropped();
      }
      append(output);
      if (text.length >= TEXT_LIMIT || entries.length >= ENTRY_LIMIT) flush();
      else if (!scheduled) {
        scheduled = true;
        setImmediate(() => {
          scheduled = false;
          if (!abandoned) flush();
        });
      }
    },
    ack(bytes) {
      inFlight -= bytes;
      pump();
    },
    finish() {
      if (abandoned) return Promise.resolve();
      tellDropped();
      flush();
      return queue.length === 0
        ? Promise.resolve()
        : new Promise((resolve) => {
            emptied = resolve;
          });
    },
    abandon() {
      abandoned = true;
      queue.length = 0;
      queued = 0;
      text = '';
      entries = [];
      pump();
    },
  };
}
