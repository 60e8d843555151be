/** QMP's streaming parser: messages without line ends, in pieces of any size, and what is said of those that are wrong. */
import { describe, expect, it } from 'vitest';
import { eventText, returnReply } from '../../src/daemon/qmp/reply.js';
import { JsonStream, LIMITS, type Message, type ParserLimits } from '../../src/protocol/json-stream.js';

function parse(bytes: string | Uint8Array, size = Number.POSITIVE_INFINITY, limits?: Partial<ParserLimits>) {
  const found: Message[] = [];
  const stream = new JsonStream((message) => found.push(message), { ...LIMITS, ...limits });
  const all = Buffer.from(bytes);
  for (let at = 0; at < all.length; at += size) stream.push(all.subarray(at, at + size));
  return found;
}

const values = (text: string, size?: number) =>
  parse(text, size).map((message) => ('value' in message ? message.value : message.error));

const TEXT = `{"a": [1, -2.5e3, true, null], 'b': {"c": 'x\\'"y'}}{"d":""}\n[[]]"s" 12 {}`;
const VALUES = [{ a: [1, -2500, true, null], b: { c: 'x\'"y' } }, { d: '' }, [[]], 's', 12, {}];

describe('messages', () => {
  it('follow each other without line ends, in both quotes', () => expect(values(TEXT)).toEqual(VALUES));

  it('may come in pieces of any size', () => {
    for (const size of [1, 2, 3, 7]) expect(values(TEXT, size)).toEqual(VALUES);
  });

  it('hold members that objects have by nature', () => {
    expect(values('{"__proto__": 1, "constructor": 2}').map((value) => JSON.stringify(value))).toEqual([
      '{"__proto__":1,"constructor":2}',
    ]);
  });

  it('keep integers of 64 bits whole in an id', () => {
    const [message] = parse('{"id": [18446744073709551615, -9223372036854775808, 1.50]}');
    const { id } = (message as { value: { id: never } }).value;
    expect(returnReply('{}', id)).toBe(
      '{"return": {}, "id": [18446744073709551615, -9223372036854775808, 1.5]}',
    );
  });

  it('end at the bracket that closes them, wrong or not', () => {
    expect(values('{"a": tru}{"b":1}')).toEqual(["JSON parse error, invalid keyword 'tru'", { b: 1 }]);
  });
});

describe('what is wrong', () => {
  const cases: readonly [string, readonly unknown[]][] = [
    ['}', ['JSON parse error, expecting value']],
    ['{,}', ['JSON parse error, expecting value']],
    ['{"a":1,}', ['JSON parse error, expecting value']],
    ['{"a":}', ['JSON parse error, expecting value']],
    ['[1,]', ['JSON parse error, expecting value']],
    ['[}', ['JSON parse error, expecting value']],
    ['{]', ['JSON parse error, expecting value']],
    ['[1 2]', ['JSON parse error, expected separator in list']],
    ['{"a":1 "b":2}', ['JSON parse error, expected separator in dict']],
    ['{"a" 1}', ['JSON parse error, missing : in object pair']],
    ['{1:2}', ['JSON parse error, key is not a string in object']],
    ['{"a":1,"a":2}', ['JSON parse error, duplicate key']],
    ['{"a":"\\q"}', ['JSON parse error, invalid escape sequence in string']],
    ['{"a":"\\u12G4"}', ['JSON parse error, \\u12G4 is not a valid Unicode character']],
    ['{"a":"\\ud800"}', ['JSON parse error, \\ud800 is not a valid Unicode character']],
    ['{"a":"x\ty"}', ["JSON parse error, stray '\"x\t'", 'JSON parse error, expecting value']],
    ['{"a":01}', ["JSON parse error, stray '01'", 'JSON parse error, expecting value']],
    ['{"a":1.}', ["JSON parse error, stray '1.}'"]],
    ['{"a":True}', ["JSON parse error, stray 'T'", 'JSON parse error, expecting value']],
  ];
  for (const [text, expected] of cases) {
    it(text, () => {
      expect(values(text)).toEqual(expected);
      expect(values(text, 1)).toEqual(expected);
      // Whatever it was, the next message is understood.
      expect(values(`${text}\n{"ok":1}`).at(-1)).toEqual({ ok: 1 });
    });
  }

  it('is not UTF-8', () => {
    const bytes = Buffer.from([...Buffer.from('{"a":"'), 0xc3, 0x28, ...Buffer.from('"}{}')]);
    expect(parse(bytes)).toEqual([
      { error: 'JSON parse error, invalid UTF-8 sequence in string' },
      { value: {} },
    ]);
  });

  it('resets at 0xff, as clients that lost their place expect', () => {
    const bytes = Buffer.concat([Buffer.from('{"a":"half'), Buffer.from([0xff]), Buffer.from('\n{"b":1}')]);
    expect(parse(bytes).at(-1)).toEqual({ value: { b: 1 } });
  });
});

describe('bounds', () => {
  it('of nesting', () => {
    expect(values('['.repeat(1025))).toEqual(['JSON nesting depth limit exceeded']);
    expect(values('['.repeat(1024) + ']'.repeat(1024))).toHaveLength(1);
  });

  it('of bytes, also within one string that never ends', () => {
    const errors = parse(`"${'x'.repeat(2000)}`, 100, { bytes: 1000 });
    expect(errors).toEqual([{ error: 'JSON token size limit exceeded' }]);
    expect(parse(`[${'"abcdefg",'.repeat(200)}`, 100, { bytes: 1000 })[0]).toEqual({
      error: 'JSON token size limit exceeded',
    });
  });

  it('of tokens', () => {
    expect(parse('[0,0,0,0]', 100, { tokens: 5 })[0]).toEqual({ error: 'JSON token count limit exceeded' });
  });
});

it("events have QEMU's members in QEMU's order", () => {
  expect(eventText('JOB_STATUS_CHANGE', { id: 'j', status: 'created' }, 1500.25)).toBe(
    '{"timestamp": {"seconds": 1, "microseconds": 500250}, "event": "JOB_STATUS_CHANGE", "data": {"status": "created", "id": "j"}}',
  );
});

it('takes any bytes, and the same ones alike however they are cut', () => {
  let seed = 7;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  };
  const pieces = [
    '{',
    '}',
    '[',
    ']',
    ':',
    ',',
    '"a"',
    "'b'",
    '1',
    '-0.5e1',
    'true',
    'nul',
    ' ',
    '\n',
    '"',
    '\\',
    '\xff',
    'é',
    '\x01',
  ];
  for (let round = 0; round < 2000; round++) {
    const text = Array.from({ length: random(30) }, () => pieces[random(pieces.length)]).join('');
    const bytes = Buffer.from(text, random(2) === 0 ? 'utf8' : 'latin1');
    const whole = parse(bytes);
    expect(parse(bytes, 1)).toEqual(whole);
    expect(parse(bytes, 1 + random(5))).toEqual(whole);
  }
});

it('understands all that JSON.parse does', () => {
  const texts = [
    '[]',
    '[[],{}]',
    '{"a":{"b":[1,2,{"c":null}]},"d":"\\u0041\\n"}',
    '[0,-0,1E5,1e-5,0.5,-12]',
    '[" \u2028\u{1f600}"]',
  ];
  for (const text of texts) expect(values(text)).toEqual([JSON.parse(text)]);
});
