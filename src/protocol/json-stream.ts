/**
 * QEMU's streaming JSON parser: messages are told apart by their brackets, so that none needs a line end. Values are built as
 * the bytes come. What is wrong inside a message is told when its brackets are closed; bytes that are no token end the message
 * at once, and reading goes on at the next bracket, comma, colon or control character, as in QEMU.
 */
import { type Json, numberValue, SyntaxFault, stringValue } from './json-tokens.js';

export type Message = { readonly value: Json } | { readonly error: string };

export interface ParserLimits {
  /** Of a message, in bytes of its tokens. */
  readonly bytes: number;
  readonly tokens: number;
  readonly depth: number;
}

/** QEMU's own. */
export const LIMITS: ParserLimits = { bytes: 64 * 2 ** 20, tokens: 2 * 2 ** 20, depth: 1024 };

type State = 'start' | 'string' | 'escape' | 'number' | 'word' | 'recovery';

/** A number as far as it has come: which byte may follow. */
type Digits = 'sign' | 'zero' | 'whole' | 'point' | 'fraction' | 'e' | 'eSign' | 'exponent';

interface Level {
  readonly array: Json[] | undefined;
  readonly object: Map<string, Json> | undefined;
  key: string | undefined;
  /** What may come next. */
  expect: 'first' | 'item' | 'colon' | 'value' | 'separator';
}

/** Of what is told to people: bytes that are no text become the replacement character. */
const lenient = new TextDecoder('utf-8', { ignoreBOM: true });

const isDigit = (byte: number): boolean => byte >= 0x30 && byte <= 0x39;
const isWord = (byte: number): boolean => byte >= 0x61 && byte <= 0x7a;
const STRUCTURE = new Set([...'[]{}:,'].map((character) => character.charCodeAt(0)));

export class JsonStream {
  readonly #limits: ParserLimits;
  readonly #onMessage: (message: Message) => void;
  #state: State = 'start';
  #quote = 0;
  #digits: Digits = 'sign';
  /** Parts of an unfinished token from chunks before. */
  #parts: Uint8Array[] = [];
  #partBytes = 0;
  #levels: Level[] = [];
  /** Of brackets and braces, also where the message is wrong already. */
  #braces = 0;
  #brackets = 0;
  #fault: string | undefined;
  #bytes = 0;
  #tokens = 0;

  constructor(onMessage: (message: Message) => void, limits: ParserLimits = LIMITS) {
    this.#onMessage = onMessage;
    this.#limits = limits;
  }

  push(chunk: Uint8Array): void {
    let from = 0;
    let at = 0;
    while (at < chunk.length) {
      const byte = chunk[at]!;
      switch (this.#state) {
        case 'start':
          from = at;
          at = this.#begin(byte, at);
          break;
        case 'recovery':
          if (byte < 0x20 || byte >= 0xfe || STRUCTURE.has(byte)) this.#state = 'start';
          else at++;
          break;
        case 'string': {
          at = this.#inString(chunk, at, from);
          break;
        }
        case 'escape':
          at++;
          if (byte < 0x20 || byte > 0xfd) this.#stray(chunk.subarray(from, at));
          else this.#state = 'string';
          break;
        case 'word':
          if (isWord(byte)) at++;
          else this.#end(chunk.subarray(from, at));
          break;
        case 'number': {
          const next = follows(this.#digits, byte);
          if (next !== undefined) {
            this.#digits = next;
            at++;
          } else if (complete(this.#digits) && !(this.#digits === 'zero' && isDigit(byte))) {
            this.#end(chunk.subarray(from, at));
          } else {
            at++;
            this.#stray(chunk.subarray(from, at));
          }
          break;
        }
      }
    }
    if (this.#state === 'start' || this.#state === 'recovery') return;
    const rest = new Uint8Array(chunk.subarray(from));
    this.#parts.push(rest);
    this.#partBytes += rest.length;
    if (this.#bytes + this.#partBytes > this.#limits.bytes) {
      this.#state = 'recovery';
      this.#parts = [];
      this.#partBytes = 0;
      this.#over('JSON token size limit exceeded');
    }
  }

  /** No more bytes come: a token that nothing follows ends here. Returns what is wrong where a message is not whole. */
  end(): string | undefined {
    const open = this.#braces > 0 || this.#brackets > 0;
    if (this.#state === 'word' || (this.#state === 'number' && complete(this.#digits))) {
      this.#end(new Uint8Array(0));
    } else if (this.#state !== 'start' && this.#state !== 'recovery') {
      const token = this.#token(new Uint8Array(0));
      this.#state = 'start';
      this.#reset();
      return strayToken(token);
    }
    if (!open) return undefined;
    this.#reset();
    return 'JSON parse error, premature EOI';
  }

  /** The first byte of a token; returns where the next one is. */
  #begin(byte: number, at: number): number {
    if (byte === 0x20 || byte === 0x09 || byte === 0x0a || byte === 0x0d) return at + 1;
    if (byte === 0x22 || byte === 0x27) {
      this.#state = 'string';
      this.#quote = byte;
    } else if (byte === 0x2d || isDigit(byte)) {
      this.#state = 'number';
      this.#digits = byte === 0x2d ? 'sign' : byte === 0x30 ? 'zero' : 'whole';
    } else if (isWord(byte)) this.#state = 'word';
    else if (STRUCTURE.has(byte)) this.#structure(byte);
    else this.#stray(Uint8Array.of(byte));
    return at + 1;
  }

  #inString(chunk: Uint8Array, start: number, from: number): number {
    for (let at = start; at < chunk.length; at++) {
      const byte = chunk[at]!;
      if (byte === this.#quote) {
        this.#end(chunk.subarray(from, at + 1));
        return at + 1;
      }
      if (byte === 0x5c) {
        this.#state = 'escape';
        return at + 1;
      }
      if (byte < 0x20 || byte > 0xfd) {
        this.#stray(chunk.subarray(from, at + 1));
        return at + 1;
      }
    }
    return chunk.length;
  }

  /** The whole token, whose last part is `last`. */
  #token(last: Uint8Array): Uint8Array {
    if (this.#parts.length === 0) return last;
    const whole = new Uint8Array(this.#partBytes + last.length);
    let at = 0;
    for (const part of [...this.#parts, last]) {
      whole.set(part, at);
      at += part.length;
    }
    this.#parts = [];
    this.#partBytes = 0;
    return whole;
  }

  #stray(last: Uint8Array): void {
    const token = this.#token(last);
    this.#state = 'recovery';
    this.#over(strayToken(token));
  }

  #end(last: Uint8Array): void {
    const state = this.#state;
    const token = this.#token(last);
    this.#state = 'start';
    if (!this.#count(token.length)) return;
    if (this.#fault === undefined) {
      try {
        if (state === 'string') this.#string(stringValue(token));
        else {
          const text = lenient.decode(token);
          this.#value(state === 'number' ? numberValue(text) : word(text));
        }
      } catch (error) {
        if (!(error instanceof SyntaxFault)) throw error;
        this.#fault = error.message;
      }
    }
    this.#settle();
  }

  #structure(byte: number): void {
    if (!this.#count(1)) return;
    const character = String.fromCharCode(byte);
    if (character === '{') this.#braces++;
    else if (character === '}') this.#braces--;
    else if (character === '[') this.#brackets++;
    else if (character === ']') this.#brackets--;
    if (this.#braces + this.#brackets > this.#limits.depth) {
      this.#over('JSON nesting depth limit exceeded');
      return;
    }
    if (this.#fault === undefined) this.#punctuation(character);
    this.#settle();
  }

  /** False where the message has become too long: then it is over. */
  #count(bytes: number): boolean {
    this.#bytes += bytes;
    this.#tokens++;
    if (this.#bytes > this.#limits.bytes) this.#over('JSON token size limit exceeded');
    else if (this.#tokens > this.#limits.tokens) this.#over('JSON token count limit exceeded');
    else return true;
    return false;
  }

  #punctuation(character: string): void {
    const level = this.#levels.at(-1);
    switch (character) {
      case '{':
      case '[': {
        if (!this.#mayHaveValue(level)) return;
        const object = character === '{';
        this.#levels.push({
          array: object ? undefined : [],
          object: object ? new Map() : undefined,
          key: undefined,
          expect: 'first',
        });
        return;
      }
      case '}':
      case ']': {
        const right = level !== undefined && (level.object !== undefined) === (character === '}');
        if (!right || level.expect === 'item' || level.expect === 'value') this.#fault = 'expecting value';
        else if (level.expect === 'colon') this.#fault = 'missing : in object pair';
        else {
          this.#levels.pop();
          this.#place(level.array ?? Object.fromEntries(level.object!));
        }
        if (!right && level?.expect === 'separator') this.#fault = separatorFault(level);
        return;
      }
      case ':':
        if (level?.expect === 'colon') level.expect = 'value';
        else this.#fault = level?.expect === 'separator' ? separatorFault(level) : 'expecting value';
        return;
      default:
        if (level?.expect === 'separator') level.expect = 'item';
        else this.#fault = level?.expect === 'colon' ? 'missing : in object pair' : 'expecting value';
    }
  }

  #mayHaveValue(level: Level | undefined): boolean {
    if (level === undefined || level.expect === 'value') return true;
    if (level.expect === 'separator') this.#fault = separatorFault(level);
    else if (level.expect === 'colon') this.#fault = 'missing : in object pair';
    else if (level.object !== undefined) this.#fault = 'key is not a string in object';
    else return true;
    return false;
  }

  #string(value: string): void {
    const level = this.#levels.at(-1);
    const key = level?.object !== undefined && (level.expect === 'first' || level.expect === 'item');
    if (!key) this.#value(value);
    else {
      if (level.object!.has(value)) this.#fault = 'duplicate key';
      level.key = value;
      level.expect = 'colon';
    }
  }

  #value(value: Json): void {
    if (this.#mayHaveValue(this.#levels.at(-1))) this.#place(value);
  }

  #place(value: Json): void {
    const level = this.#levels.at(-1);
    if (level === undefined) {
      this.#reset();
      this.#onMessage({ value });
      return;
    }
    if (level.array !== undefined) level.array.push(value);
    else level.object!.set(level.key!, value);
    level.expect = 'separator';
  }

  /** Tells of a message that is wrong, once it is over. */
  #settle(): void {
    if (this.#fault === undefined) return;
    const open = this.#braces > 0 || this.#brackets > 0;
    if (!open || this.#braces < 0 || this.#brackets < 0) this.#over(`JSON parse error, ${this.#fault}`);
    else this.#levels = [];
  }

  #over(error: string): void {
    this.#reset();
    this.#onMessage({ error });
  }

  #reset(): void {
    this.#levels = [];
    this.#braces = 0;
    this.#brackets = 0;
    this.#fault = undefined;
    this.#bytes = 0;
    this.#tokens = 0;
  }
}

/**
 * The one value of a text, as QEMU takes it for `json:` filenames and `--object`: single quotes too, no key twice. Throws
 * SyntaxFault with QEMU's whole message.
 */
export function parseJson(text: string): Json {
  const found: Message[] = [];
  const stream = new JsonStream((message) => found.push(message));
  stream.push(new TextEncoder().encode(text));
  const fault = stream.end();
  if (fault !== undefined) found.push({ error: fault });
  const [first, second] = found;
  if (first === undefined) throw new SyntaxFault('Expecting a JSON value');
  if ('error' in first) throw new SyntaxFault(first.error);
  if (second !== undefined) throw new SyntaxFault('Expecting at most one JSON value');
  return first.value;
}

function strayToken(token: Uint8Array): string {
  return `JSON parse error, stray '${lenient.decode(token.subarray(0, 256))}'`;
}

function separatorFault(level: Level): string {
  return `expected separator in ${level.object === undefined ? 'list' : 'dict'}`;
}

function word(text: string): Json {
  if (text === 'true') return true;
  if (text === 'false') return false;
  if (text === 'null') return null;
  throw new SyntaxFault(`invalid keyword '${text.slice(0, 256)}'`);
}

/** The state after `byte`, or undefined where the number cannot go on with it. */
function follows(digits: Digits, byte: number): Digits | undefined {
  const digit = isDigit(byte);
  const e = byte === 0x65 || byte === 0x45;
  switch (digits) {
    case 'sign':
      return digit ? (byte === 0x30 ? 'zero' : 'whole') : undefined;
    case 'zero':
    case 'whole':
      if (byte === 0x2e) return 'point';
      if (e) return 'e';
      return digit && digits === 'whole' ? 'whole' : undefined;
    case 'point':
      return digit ? 'fraction' : undefined;
    case 'fraction':
      return e ? 'e' : digit ? 'fraction' : undefined;
    case 'e':
      if (byte === 0x2b || byte === 0x2d) return 'eSign';
      return digit ? 'exponent' : undefined;
    default:
      return digit ? 'exponent' : undefined;
  }
}

function complete(digits: Digits): boolean {
  return digits === 'zero' || digits === 'whole' || digits === 'fraction' || digits === 'exponent';
}
