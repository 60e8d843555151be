/** What hostile clients send: bytes in steps, made from a seed. */
import type { Random } from './random.js';

/** What a connection does, one step after the other. */
export type Step =
  | { readonly do: 'write'; readonly bytes: Uint8Array }
  /** One byte each so many milliseconds. */
  | { readonly do: 'drip'; readonly bytes: Uint8Array; readonly ms: number }
  /** Waits for the peer to close, at most so long. */
  | { readonly do: 'wait'; readonly ms: number }
  | { readonly do: 'read' }
  | { readonly do: 'deafen' }
  | { readonly do: 'half-close' }
  | { readonly do: 'reset' };

export type Language = 'json-rpc' | 'qmp' | 'http' | 'websocket';

const text = (words: string): Uint8Array => Buffer.from(words);
const join = (...parts: readonly Uint8Array[]): Uint8Array => Buffer.concat(parts);

const call = (method: string, params: unknown, id: unknown = 1): string =>
  JSON.stringify({ jsonrpc: '2.0', id, method, params });

/** Sound messages, and the makings of others. Nothing that ends the daemon or writes a file. */
const RPC = [
  call('ping', {}),
  call('query-version', {}, 'a'),
  call('query-jobs', {}, 1.5),
  call('image-info', { image: { filename: 'innocent.qcow2' } }, null),
  call('image-map', { image: { filename: 'innocent.qcow2' }, job: { id: 'fuzz', wait: false } }),
  call('image-check', { image: { 'image-opts': 'driver=qcow2,file.filename=innocent.qcow2' } }),
  call('image-info', { image: { filename: 'json:{"driver":"raw","file":{"filename":"innocent.qcow2"}}' } }),
  call('events-subscribe', { filter: { events: ['JOB_STATUS_CHANGE', 'JOB_OUTPUT'] }, since: 0 }),
  call('events-unsubscribe', { subscription: 's1' }),
  call('blockdev-add', { driver: 'qcow2', 'node-name': 'n', file: { driver: 'file', filename: 'x' } }),
  call('job-cancel', { id: 'fuzz', force: true }),
  call('job-wait', { id: 'fuzz' }),
  call('rpc.discover', {}),
  `[${call('ping', {})},${call('nothing', [])},1,null]`,
];
const QMP = [
  '{"execute":"qmp_capabilities"}',
  '{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}',
  '{"execute":"query-version","id":{"any":[1,2]}}',
  "{'execute':'query-jobs','id':'\\u0041'}",
  '{"exec-oob":"query-commands","id":1}',
  '{"execute":"query-named-block-nodes","arguments":{"flat":true}}',
  '{"execute":"blockdev-del","arguments":{"node-name":"n"}}',
  '{"execute":"job-dismiss","arguments":{"id":"fuzz"}}',
  '{"execute":"transaction","arguments":{"actions":[]}}',
];

function messages(language: Language): readonly string[] {
  return language === 'qmp' ? QMP : RPC;
}

/** A sound message with some of it overwritten, removed, doubled or mixed with another. */
function mangled(random: Random, language: Language): Uint8Array {
  let bytes = Buffer.from(random.pick(messages(language)));
  for (let n = 1 + random.below(4); n > 0; n--) {
    const at = random.below(bytes.length + 1);
    const length = random.below(Math.min(12, bytes.length - at) + 1);
    const [head, part, tail] = [
      bytes.subarray(0, at),
      bytes.subarray(at, at + length),
      bytes.subarray(at + length),
    ];
    const between = random.pick<() => Uint8Array>([
      () => random.bytes(length),
      () => Buffer.alloc(0),
      () => Buffer.concat([part, part]),
      () =>
        text(
          random.pick(['"', '\\', '{', '}', '[', ']', ':', ',', '\\u', '\\ud800', '1e999', '-', '\0', '%']),
        ),
      () => text(random.pick(messages(language))),
      () =>
        text(random.pick(['__proto__', 'constructor', 'toString', '9007199254740993', '-0', 'null', 'NaN'])),
    ])();
    bytes = Buffer.concat([head, between, tail]);
  }
  return bytes;
}

/** Not UTF-8, in the midst of something that is a message otherwise. */
function notUtf8(random: Random, language: Language): Uint8Array {
  const bad = random.pick([
    [0xff],
    [0xc0, 0xaf],
    [0xed, 0xa0, 0x80],
    [0xf8, 0x88, 0x80, 0x80],
    [0xe2, 0x82],
    [0x80],
  ]);
  const bytes = Buffer.from(random.pick(messages(language)));
  const at = random.below(bytes.length);
  return join(bytes.subarray(0, at), Uint8Array.from(bad), bytes.subarray(at));
}

function deep(random: Random): Uint8Array {
  const depth = random.pick([63, 64, 65, 1000, 20_000]);
  const [open, close] = random.pick([
    ['[', ']'],
    ['{"a":', '}'],
    ['[{"x":', '}]'],
  ] as const);
  return text(`${open.repeat(depth)}1${random.once(2) ? close.repeat(depth) : ''}`);
}

function huge(random: Random): Uint8Array {
  const size = random.pick([65_535, 65_536, 65_537, 300_000, 2_000_000]);
  return random.pick<() => Uint8Array>([
    () => Buffer.alloc(size, '"a'),
    () => Buffer.alloc(size, ' '),
    () => Buffer.alloc(size, '\n'),
    () => text(call('ping', { pad: 'x'.repeat(size) })),
    () => text(`[${`${call('ping', {})},`.repeat(Math.min(200, size >> 6))}1]`),
    () => text(call('ping', {}, '9'.repeat(size))),
    () => Buffer.alloc(size),
  ])();
}

/** A message, or what is none. */
function payload(random: Random, language: Language): Uint8Array {
  return random.pick<() => Uint8Array>([
    () => text(random.pick(messages(language))),
    () => mangled(random, language),
    () => mangled(random, language),
    () => notUtf8(random, language),
    () => deep(random),
    () => huge(random),
    () => random.bytes(random.below(3000)),
  ])();
}

/** A client's frame; what it says of itself need not be so. */
function frame(random: Random, body: Uint8Array): Uint8Array {
  const lies = random.once(4);
  const first = lies ? random.below(256) : 0x80 | random.pick([1, 1, 1, 1, 2, 0, 8, 9, 10]);
  const masked = lies && random.once(2) ? 0 : 0x80;
  const claimed = lies ? random.pick([0, body.length + 1, 2 ** 31, 2 ** 53, 5]) : body.length;
  const head = Buffer.alloc(14);
  head[0] = first;
  let at = 2;
  if (claimed < 126) head[1] = masked | claimed;
  else if (claimed < 65_536) {
    head[1] = masked | 126;
    at = head.writeUInt16BE(claimed, 2);
  } else {
    head[1] = masked | 127;
    at = head.writeBigUInt64BE(BigInt(claimed), 2);
  }
  if (masked === 0) return join(head.subarray(0, at), body);
  const mask = random.bytes(4);
  head.set(mask, at);
  return join(
    head.subarray(0, at + 4),
    body.map((byte, i) => byte ^ mask[i % 4]!),
  );
}

export interface Access {
  readonly host: string;
  readonly token: string;
}

/** What must be said before the first frame. */
export function handshake({ host, token }: Access): string {
  return [
    'GET / HTTP/1.1',
    `Host: ${host}`,
    'Connection: Upgrade',
    'Upgrade: websocket',
    'Sec-WebSocket-Version: 13',
    'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==',
    `Authorization: Bearer ${token}`,
    '\r\n',
  ].join('\r\n');
}

function httpRequest(random: Random, { host, token }: Access): Uint8Array {
  const body = payload(random, 'http');
  const length = random.once(4) ? random.pick(['-1', '0', '99999999999', 'x', '10']) : String(body.length);
  const lines = [
    `${random.pick(['POST', 'POST', 'POST', 'GET', 'PUT', 'BREW'])} ${random.pick(['/', '/rpc', '/metrics', '/%00', '*'])} HTTP/1.1`,
    `Host: ${random.once(8) ? 'elsewhere.example' : host}`,
    `Authorization: Bearer ${random.once(8) ? 'wrong' : token}`,
    `Content-Type: ${random.once(8) ? 'text/plain' : 'application/json'}`,
    ...(random.once(6) ? ['Transfer-Encoding: chunked'] : [`Content-Length: ${length}`]),
    ...(random.once(8) ? [`X-Long: ${'x'.repeat(random.pick([1000, 20_000]))}`] : []),
    ...(random.once(8) ? ['Expect: 100-continue'] : []),
  ];
  return join(text(`${lines.join('\r\n')}\r\n\r\n`), body);
}

/** What one connection sends. */
function content(random: Random, language: Language, access: Access): Uint8Array[] {
  const count = 1 + random.below(random.once(4) ? 40 : 4);
  return Array.from({ length: count }, () => {
    if (random.once(12)) return random.bytes(random.below(5000));
    if (language === 'http') return httpRequest(random, access);
    const body = payload(random, language);
    if (language === 'websocket') return frame(random, body);
    return join(body, text(random.pick(['\n', '\n', '\n', '\r\n', '', '\n\n'])));
  });
}

/** The steps of one hostile connection. */
export function attack(random: Random, language: Language, access: Access): Step[] {
  const parts = content(random, language, access);
  const steps: Step[] = [];
  if (random.once(3)) steps.push({ do: 'deafen' });
  if (language === 'websocket')
    steps.push({ do: 'write', bytes: text(handshake(access)) }, { do: 'wait', ms: 5 });
  for (const bytes of parts) {
    if (random.once(20)) steps.push({ do: 'drip', bytes: bytes.subarray(0, 30), ms: 10 });
    // A part of it, and then nothing, or something else.
    else if (random.once(6))
      steps.push({ do: 'write', bytes: bytes.subarray(0, random.below(bytes.length)) });
    else steps.push({ do: 'write', bytes });
    if (random.once(6)) steps.push({ do: 'wait', ms: random.below(10) });
  }
  if (random.once(2)) steps.push({ do: 'read' });
  const end = random.below(4);
  if (end === 0) steps.push({ do: 'half-close' });
  if (end <= 1) steps.push({ do: 'wait', ms: 50 });
  else if (end === 2) steps.push({ do: 'reset' });
  return steps;
}
