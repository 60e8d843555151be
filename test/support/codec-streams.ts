/** Small writers of ADC and LZVN/LZFSE streams: not good compressors, but ones that use every kind of operation. */

export type AdcStep =
  | { readonly plain: Uint8Array }
  | { readonly length: number; readonly distance: number; readonly long?: boolean };

/** An ADC stream of the given steps; `long` uses three bytes for a match that two could hold. */
export function adcStream(steps: readonly AdcStep[]): Uint8Array {
  const out: number[] = [];
  for (const step of steps) {
    if ('plain' in step) {
      for (let at = 0; at < step.plain.length; at += 128) {
        const part = step.plain.subarray(at, at + 128);
        out.push(0x80 | (part.length - 1), ...part);
      }
      continue;
    }
    const back = step.distance - 1;
    if (step.long === true || step.length > 18 || back > 0x3ff) {
      out.push(0x40 | (step.length - 4), back >> 8, back & 0xff);
    } else {
      out.push(((step.length - 3) << 2) | (back >> 8), back & 0xff);
    }
  }
  return Uint8Array.from(out);
}

/** A greedy match finder: literal runs and matches of 3 bytes and more. */
export function* lzSteps(data: Uint8Array, maxDistance: number, maxLength: number) {
  const seen = new Map<number, number>();
  let literalFrom = 0;
  let at = 0;
  while (at + 3 <= data.length) {
    const key = data[at]! | (data[at + 1]! << 8) | (data[at + 2]! << 16);
    const before = seen.get(key);
    seen.set(key, at);
    if (before === undefined || at - before > maxDistance) {
      at++;
      continue;
    }
    let length = 3;
    while (length < maxLength && at + length < data.length && data[before + length] === data[at + length])
      length++;
    yield { literals: data.subarray(literalFrom, at), length, distance: at - before };
    at += length;
    literalFrom = at;
  }
  yield { literals: data.subarray(literalFrom), length: 0, distance: 0 };
}

/** ADC-compresses any data. */
export function adcCompress(data: Uint8Array): Uint8Array {
  const steps: AdcStep[] = [];
  let at = 0;
  for (const { literals, length, distance } of lzSteps(data, 65536, 67)) {
    if (literals.length > 0) steps.push({ plain: literals });
    at += literals.length;
    // The shortest far match has four bytes.
    if (length === 3 && distance > 1024) steps.push({ plain: data.subarray(at, at + 3) });
    else if (length > 0) steps.push({ length, distance });
    at += length;
  }
  return adcStream(steps);
}

/** The opcodes of an LZVN payload for any data, with its end mark. */
export function lzvnPayload(data: Uint8Array): Uint8Array {
  const out: number[] = [];
  let previous = 0;
  for (const { literals, length, distance } of lzSteps(data, 65535, 2000)) {
    let at = 0;
    // All but the last three literals need an opcode of their own.
    const alone = length === 0 ? literals.length : Math.max(0, literals.length - 3);
    while (at < alone) {
      const count = Math.min(alone - at, 271);
      if (count >= 16) out.push(0xe0, count - 16);
      else out.push(0xe0 | count);
      out.push(...literals.subarray(at, at + count));
      at += count;
    }
    if (length === 0) break;
    const rest = literals.subarray(at);
    let left = length;
    // Longer ones would be other opcodes.
    const most = [10, 8, 6, 4][rest.length]!;
    if (distance === previous && rest.length > 0) {
      const now = Math.min(left, most);
      out.push((rest.length << 6) | ((now - 3) << 3) | 6, ...rest);
      left -= now;
    } else if (distance === previous) {
      // the match opcodes below
    } else if (distance < 0x600) {
      const now = Math.min(left, most);
      out.push((rest.length << 6) | ((now - 3) << 3) | (distance >> 8), distance & 0xff, ...rest);
      left -= now;
    } else if (distance < 0x4000) {
      const now = Math.min(left, 34);
      const low = ((now - 3) & 3) | ((distance & 0x3f) << 2);
      out.push(0xa0 | (rest.length << 3) | ((now - 3) >> 2), low, distance >> 6, ...rest);
      left -= now;
    } else {
      const now = Math.min(left, most);
      out.push((rest.length << 6) | ((now - 3) << 3) | 7, distance & 0xff, distance >> 8, ...rest);
      left -= now;
    }
    previous = distance;
    while (left > 0) {
      const now = Math.min(left, 271);
      if (now >= 16) out.push(0xf0, now - 16);
      else out.push(0xf0 | now);
      left -= now;
    }
  }
  out.push(0x0e, 0x16); // no operations
  out.push(6, 0, 0, 0, 0, 0, 0, 0);
  return Uint8Array.from(out);
}

function words(...values: readonly number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer);
}

export function rawBlock(data: Uint8Array): Uint8Array {
  return Buffer.concat([Buffer.from('bvx-'), words(data.length), data]);
}

export function lzvnBlock(data: Uint8Array): Uint8Array {
  const payload = lzvnPayload(data);
  return Buffer.concat([Buffer.from('bvxn'), words(data.length, payload.length), payload]);
}

/** A stream of blocks, with its end mark. */
export function lzfseStream(...blocks: readonly Uint8Array[]): Uint8Array {
  return Buffer.concat([...blocks, Buffer.from('bvx$')]);
}

/** Reproducible text with repeats near and far: words drawn by a linear congruential generator. */
export function sampleText(length: number): Uint8Array {
  const vocabulary = [
    'image',
    'cluster',
    'sector ',
    'grain',
    'extent\n',
    'disk',
    ' of ',
    ' the ',
    '0x7f',
    'QQQQQQQQQQQQ',
  ];
  const out = Buffer.alloc(length);
  let state = 12345;
  for (let at = 0; at < length; ) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    const word = vocabulary[(state >>> 16) % vocabulary.length]!;
    at += out.write(word, at, 'latin1');
    if ((state >>> 8) % 5 === 0 && at < length) out[at++] = state >>> 24;
  }
  return out;
}
