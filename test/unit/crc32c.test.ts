import { describe, expect, test } from 'vitest';
import { crc32c } from '../../src/engine/codec/crc32c.js';

/** Bit by bit, as the polynomial has it. */
function slow(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return ~crc >>> 0;
}

const sample = Uint8Array.from({ length: 1000 }, (_, at) => (at * 167 + (at >> 3) * 31) & 0xff);

describe('CRC-32C', () => {
  // RFC 3720, B.4, and the usual check value.
  test.each([
    ['nothing', new Uint8Array(0), 0],
    ['123456789', Buffer.from('123456789'), 0xe3069283],
    ['32 zeros', new Uint8Array(32), 0x8a9136aa],
    ['32 ones', new Uint8Array(32).fill(0xff), 0x62a8ab43],
    ['counting up', Uint8Array.from({ length: 32 }, (_, at) => at), 0x46dd794e],
    ['counting down', Uint8Array.from({ length: 32 }, (_, at) => 31 - at), 0x113fdb5c],
    [
      'an iSCSI read command',
      Buffer.from(
        '01c00000000000000000000000000000140000000000040000000014000000182800000000000000' +
          '0200000000000000',
        'hex',
      ),
      0xd9963a56,
    ],
  ])('%s', (_, bytes, sum) => {
    expect(crc32c(bytes)).toBe(sum);
    expect(slow(bytes)).toBe(sum);
  });

  test('every length and start, as bit by bit', () => {
    for (let from = 0; from < 9; from++) {
      for (let length = 0; length < 40; length++) {
        const part = sample.subarray(from, from + length);
        expect(crc32c(part)).toBe(slow(part));
      }
    }
  });

  test('in pieces, as in one', () => {
    const whole = crc32c(sample);
    for (const cut of [0, 1, 7, 8, 9, 500, 999, 1000]) {
      expect(crc32c(sample.subarray(cut), crc32c(sample.subarray(0, cut)))).toBe(whole);
    }
  });
});
