/** One QMP connection: greeting, negotiation, its commands one after another, and those that go out of band beside them. */

import { JsonStream, type Message } from '../../protocol/json-stream.js';
import type { Json } from '../../protocol/json-tokens.js';
import type { QmpReceiver } from '../listeners/qmp.js';
import type { Transport } from '../listeners/transport.js';
import { Session } from '../sessions/session.js';
import { isDict } from './check.js';
import type { QmpCommands } from './dispatch.js';
import { asQmpError, errorReply, greeting, QmpError, returnReply } from './reply.js';

/** Commands that may wait for those before them; then no more are read. QEMU's number. */
const QUEUE = 8;
/** Bytes of events that may wait for a client that does not read: QMP cannot say that some were lost, so it is let go. */
const EVENT_BYTES = 1024 * 1024;
/** Bytes that may wait for the client before its next command is begun. */
const ANSWER_BYTES = 256 * 1024;
/** Messages after which other clients get their turn: 64 KiB of garbage are some 30,000 faults, each answered. */
const TURN = 100;

interface Request {
  readonly command: string;
  readonly arguments: { readonly [member: string]: Json };
  readonly id: Json | undefined;
  readonly oob: boolean;
}

export class QmpSession extends Session implements QmpReceiver {
  readonly #commands: QmpCommands;
  readonly #parser: JsonStream;
  #queue: Message[] = [];
  #head = 0;
  readonly #onSlow: () => void;
  #working = false;
  #held = false;
  #onDrained: (() => void) | undefined;
  #eventBytes = 0;
  negotiated = false;
  #oob = false;

  constructor(id: number, transport: Transport, commands: QmpCommands, onSlow: () => void) {
    super(id, transport, () => undefined);
    this.#commands = commands;
    this.#onSlow = onSlow;
    this.#parser = new JsonStream((message) => this.#received(message));
    this.answer(greeting(commands.version));
  }

  bytes(chunk: Uint8Array): void {
    this.#parser.push(chunk);
    if (this.#queue.length - this.#head < QUEUE) return;
    this.#held = true;
    this.transport.pause();
  }

  override drained(): void {
    super.drained();
    this.#goOn();
  }

  override closed(): void {
    super.closed();
    this.#queue = [];
    this.#head = 0;
    this.#goOn();
  }

  #goOn(): void {
    const resolve = this.#onDrained;
    if (resolve === undefined || this.outbox.bytes > ANSWER_BYTES) return;
    this.#onDrained = undefined;
    resolve();
  }

  override halfClosed(): void {
    this.#parser.end();
    super.halfClosed();
  }

  event(text: string): void {
    if (!this.negotiated) return;
    const bytes = text.length + 100;
    this.#eventBytes += bytes;
    this.outbox.push({
      text: () => text,
      bytes,
      gone: () => {
        this.#eventBytes -= bytes;
      },
    });
    if (this.#eventBytes <= EVENT_BYTES) return;
    this.#onSlow();
    this.transport.destroy();
  }

  #received(message: Message): void {
    const value = 'value' in message ? message.value : undefined;
    if (this.#oob && isDict(value) && 'exec-oob' in value) {
      void this.#handle(message);
      return;
    }
    this.#queue.push(message);
    if (!this.#working) void this.#work();
  }

  async #work(): Promise<void> {
    this.#working = true;
    this.hold();
    while (this.#head < this.#queue.length) {
      await this.#handle(this.#queue[this.#head++]!);
      if (this.#head % TURN === 0) await new Promise((resolve) => setImmediate(resolve));
      if (this.outbox.bytes > ANSWER_BYTES) {
        await new Promise<void>((resolve) => {
          this.#onDrained = resolve;
        });
      }
      if (this.#held && this.#queue.length - this.#head < QUEUE) {
        this.#held = false;
        this.transport.resume();
      }
    }
    this.#queue = [];
    this.#head = 0;
    this.#working = false;
    this.release();
  }

  async #handle(message: Message): Promise<void> {
    let id: Json | undefined;
    this.callStarted();
    try {
      if ('error' in message) throw new QmpError(message.error);
      const { value } = message;
      if (isDict(value)) id = value.id;
      const request = this.#request(value);
      const after: (() => void)[] = [];
      const json = await this.#execute(request, after);
      this.answer(returnReply(json, id));
      for (const callback of after) callback();
    } catch (error) {
      const known = asQmpError(error);
      if (known === undefined) this.#commands.bug(error);
      this.answer(errorReply(known ?? new QmpError('internal error'), id));
    } finally {
      this.callEnded();
    }
  }

  #request(value: Json): Request {
    if (!isDict(value)) throw new QmpError('QMP input must be a JSON object');
    let command: string | undefined;
    let given: { readonly [member: string]: Json } = {};
    let oob = false;
    for (const [name, member] of Object.entries(value)) {
      if (name === 'execute' || (name === 'exec-oob' && this.#oob)) {
        if (typeof member !== 'string') throw new QmpError(`QMP input member '${name}' must be a string`);
        if (command !== undefined) throw new QmpError("QMP input member 'execute' clashes with 'exec-oob'");
        command = member;
        oob = name === 'exec-oob';
      } else if (name === 'arguments') {
        if (!isDict(member)) throw new QmpError("QMP input member 'arguments' must be an object");
        given = member;
      } else if (name !== 'id') {
        throw new QmpError(`QMP input member '${name.slice(0, 64)}' is unexpected`);
      }
    }
    if (command === undefined) throw new QmpError("QMP input lacks member 'execute'");
    return { command, arguments: given, id: value.id, oob };
  }

  async #execute(request: Request, after: (() => void)[]): Promise<string> {
    const { command, oob } = request;
    if (command === 'qmp_capabilities' && !oob) {
      if (this.negotiated) {
        throw new QmpError(
          'Capabilities negotiation is already complete, command ignored',
          'CommandNotFound',
        );
      }
      const { enable = [] } = this.#commands.check(command, request.arguments) as { enable?: string[] };
      this.negotiated = true;
      this.#oob = enable.includes('oob');
      return '{}';
    }
    if (!this.negotiated) {
      throw new QmpError("Expecting capabilities negotiation with 'qmp_capabilities'", 'CommandNotFound');
    }
    return this.#commands.run(command, request.arguments, oob, {
      session: this,
      afterAnswer: (callback) => after.push(callback),
    });
  }
}
