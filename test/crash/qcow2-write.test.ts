/** Guest writes to qcow2 images: whatever moment the power fails at, the image opens and nothing is neither old nor new. */
import { describe, it } from 'vitest';
import { addSnapshot } from './qcow2.js';
import { type Guest, pattern, type Scenario, survives } from './scenario.js';

const K = 1024;

describe('qcow2 writes survive crashes', () => {
  it('new clusters', async () => {
    await survives({
      size: 256 * K,
      async act(guest) {
        await guest.write(0, 3 * K, 1);
        await guest.write(100 * K, 2 * K, 2);
        await guest.flush();
        await guest.write(40 * K + 100, 700, 3);
      },
    });
  });

  it('clusters overwritten in place', async () => {
    await survives({
      size: 64 * K,
      before: (guest) => guest.write(0, 8 * K, 1),
      async act(guest) {
        await guest.write(K, 2 * K, 2);
        await guest.write(5 * K + 17, 300, 3);
      },
    });
  });

  it('unaligned over a backing file', async () => {
    await survives({
      size: 64 * K,
      options: { cluster_size: 4096 },
      backing: pattern(0, 50 * K, 9),
      async act(guest) {
        await guest.write(100, 200, 1);
        await guest.write(3 * 4096 - 50, 100, 2);
        await guest.flush();
        await guest.write(50 * K - 10, 100, 3);
      },
    });
  });

  it('clusters shared with a snapshot', async () => {
    await survives({
      size: 64 * K,
      before: async (guest) => {
        await guest.write(0, 6 * K, 1);
        await guest.write(40 * K, 2 * K, 1);
      },
      between: (image) => addSnapshot(image, 'one'),
      async act(guest) {
        await guest.write(K + 100, 1000, 2);
        await guest.flush();
        await guest.write(40 * K, 512, 3);
        await guest.zero(4 * K, K);
        await guest.discard(5 * K, 512);
      },
    });
  });

  it('compressed clusters overwritten', async () => {
    await survives({
      size: 64 * K,
      options: { cluster_size: 4096 },
      before: async (guest) => {
        for (let index = 0; index < 6; index++) await guest.pack(index * 4096, index);
      },
      async act(guest) {
        await guest.write(4096 + 100, 300, 7);
        await guest.write(2 * 4096, 4096, 8);
        await guest.flush();
        await guest.zero(3 * 4096, 4096);
        await guest.write(4 * 4096, 100, 9);
      },
    });
  });

  it('compressed clusters shared with a snapshot overwritten', async () => {
    await survives({
      size: 64 * K,
      options: { cluster_size: 4096 },
      before: async (guest) => {
        for (let index = 0; index < 4; index++) await guest.pack(index * 4096, index);
      },
      between: (image) => addSnapshot(image, 'one'),
      async act(guest) {
        await guest.write(4096 + 100, 300, 7);
        await guest.discard(2 * 4096, 4096);
      },
    });
  });

  it('compressed writes', async () => {
    await survives({
      size: 128 * K,
      options: { cluster_size: 4096 },
      async act(guest) {
        await guest.pack(0, 1);
        await guest.pack(4096, 2);
        await guest.flush();
        await guest.pack(64 * K, 3);
      },
    });
  });

  it('zeroes and discards', async () => {
    await survives({
      size: 128 * K,
      before: (guest) => guest.write(0, 60 * K, 1),
      async act(guest) {
        await guest.zero(0, 2 * K);
        await guest.zero(10 * K + 100, 3 * K, true);
        await guest.discard(20 * K, 8 * K);
        await guest.flush();
        await guest.write(21 * K, K, 2);
        await guest.write(0, 512, 3);
        await guest.discard(30 * K, 2 * K);
        await guest.write(100 * K, 4 * K, 4);
      },
    });
  });

  it('freed clusters used again', async () => {
    await survives({
      size: 64 * K,
      options: { cluster_size: 4096 },
      before: (guest) => guest.write(0, 32 * K, 1),
      async act(guest) {
        for (let round = 0; round < 4; round++) {
          await guest.discard(round * 8 * K, 8 * K);
          await guest.write(32 * K + round * 4 * K, 4 * K, 2 + round);
        }
      },
      samples: 300,
    });
  });

  it('many writes at once', async () => {
    await survives({
      size: 256 * K,
      before: (guest) => guest.write(0, 16 * K, 1),
      async act(guest) {
        const work: Promise<void>[] = [];
        for (let index = 0; index < 24; index++) {
          work.push(guest.write(index * 7 * K, 2 * K + (index % 5) * 100, 2 + index));
        }
        await Promise.all(work);
        await guest.flush();
        await Promise.all([
          guest.write(200 * K, 10 * K, 40),
          guest.zero(30 * K, 2 * K),
          guest.discard(64 * K, 2 * K),
        ]);
      },
      samples: 300,
    });
  });

  it('a guest flush while writes are under way', async () => {
    await survives({
      size: 128 * K,
      async act(guest) {
        await guest.write(0, 4 * K, 1);
        await Promise.all([guest.write(20 * K, 4 * K, 2), guest.flush(), guest.write(40 * K, 4 * K, 3)]);
        await guest.write(60 * K, 4 * K, 4);
      },
      samples: 300,
    });
  });

  it('refcount blocks added', async () => {
    await survives({
      size: 512 * K,
      options: { refcount_bits: 64 },
      async act(guest) {
        for (let index = 0; index < 6; index++) await guest.write(index * 50 * K, 20 * K, index);
      },
      samples: 200,
    });
  });

  it('the refcount table grown', { timeout: 300_000 }, async () => {
    await survives({
      size: 4 * K * K,
      options: { refcount_bits: 64 },
      before: (guest) => guest.write(0, 1800 * K, 1),
      async act(guest) {
        await guest.write(1800 * K, 64 * K, 2);
        await guest.write(1900 * K, 64 * K, 3);
        await guest.flush();
        await guest.write(2000 * K, 64 * K, 4);
      },
      samples: 60,
    });
  });

  for (const bits of [1, 2, 8]) {
    it(`refcounts of ${bits} bits`, async () => {
      await survives({
        size: 64 * K,
        options: { refcount_bits: bits },
        before: (guest) => guest.write(0, 4 * K, 1),
        async act(guest) {
          await guest.write(10 * K, 3 * K, 2);
          await guest.discard(0, K);
          await guest.write(20 * K, K, 3);
        },
      });
    });
  }

  it('lazy refcounts', async () => {
    await survives({
      size: 64 * K,
      options: { lazy_refcounts: true },
      before: (guest) => guest.write(0, 4 * K, 1),
      async act(guest) {
        await guest.write(10 * K, 3 * K, 2);
        await guest.flush();
        await guest.discard(0, K);
        await guest.write(20 * K, K, 3);
      },
    });
  });

  it('version 2', async () => {
    await survives({
      size: 64 * K,
      options: { compat: '0.10' },
      before: (guest) => guest.write(0, 4 * K, 1),
      async act(guest) {
        await guest.write(10 * K + 10, 3 * K, 2);
        await guest.zero(K, K);
      },
    });
  });

  it('an external data file', async () => {
    await survives({
      size: 128 * K,
      options: { data_file: 'data' },
      before: (guest) => guest.write(0, 4 * K, 1),
      async act(guest) {
        await guest.write(10 * K + 10, 3 * K, 2);
        await guest.write(K, K, 3);
        await guest.flush();
        await guest.zero(0, K);
        await guest.write(60 * K, 2 * K, 4);
      },
    });
  });

  it('an external data file that is raw', async () => {
    await survives({
      size: 128 * K,
      options: { data_file: 'data', data_file_raw: true },
      before: (guest) => guest.write(0, 4 * K, 1),
      async act(guest) {
        await guest.write(10 * K + 10, 3 * K, 2);
        await guest.zero(0, K);
      },
    });
  });

  it('subclusters', async () => {
    await survives({
      size: 512 * K,
      options: { cluster_size: 16 * K, extended_l2: true },
      before: (guest) => guest.write(0, 20 * K, 1),
      async act(guest) {
        await guest.write(40 * K + 100, 900, 2);
        await guest.flush();
        await guest.write(47 * K, 512, 3);
        await guest.zero(K, K);
        await guest.zero(200 * K, 40 * K);
        await guest.write(208 * K, K, 4);
        await guest.discard(0, 16 * K);
      },
      samples: 250,
    });
  });

  it('subclusters over a backing file', async () => {
    await survives({
      size: 128 * K,
      options: { cluster_size: 16 * K, extended_l2: true },
      backing: pattern(0, 128 * K, 5),
      async act(guest) {
        await guest.write(40 * K + 100, 900, 2);
        await guest.write(33 * K, 512, 3);
        await guest.zero(64 * K, 2 * K);
        await guest.write(70 * K, 512, 4);
      },
    });
  });

  it('preallocated metadata', async () => {
    await survives({
      size: 64 * K,
      options: { preallocation: 'metadata' },
      async act(guest) {
        await guest.write(1000, 3 * K, 1);
        await guest.zero(20 * K, K);
        await guest.write(20 * K, 512, 2);
      },
    });
  });

  for (const preallocation of ['off', 'metadata', 'falloc', 'full'] as const) {
    it(`an image grown, preallocation ${preallocation}`, async () => {
      await survives({
        size: 60 * K,
        grown: 300 * K,
        before: (guest) => guest.write(0, 4 * K, 1),
        async act(guest) {
          await guest.write(8 * K, K, 2);
          await guest.image.format.resize!(300 * K, { preallocation });
          await guest.write(250 * K, 3 * K, 3);
          await guest.flush();
          await guest.write(61 * K, 3 * K, 4);
        },
      });
    });
  }

  const variety: readonly Partial<Scenario>[] = [
    { options: { cluster_size: 512 } },
    { options: { cluster_size: 4096, refcount_bits: 8 } },
    { options: { cluster_size: 512, refcount_bits: 64 } },
    { options: { cluster_size: 4096 }, between: (image) => addSnapshot(image, 'one') },
    { options: { cluster_size: 16 * K, extended_l2: true } },
    { options: { cluster_size: 4096, data_file: 'data' } },
    { options: { cluster_size: 2048, lazy_refcounts: true } },
    { options: { cluster_size: 1024, compat: '0.10' } },
    { options: { cluster_size: 512, preallocation: 'metadata' } },
  ];
  const seeds = Number(process.env.IMGD_CRASH_SEEDS ?? variety.length);
  for (let seed = 1; seed <= seeds; seed++) {
    const kind = variety[seed % variety.length]!;
    it(`random operations, seed ${seed}, ${JSON.stringify(kind.options)}`, { timeout: 300_000 }, async () => {
      await survives({
        size: 256 * K,
        ...kind,
        before: (guest) => churn(guest, seed * 100, 12),
        act: (guest) => churn(guest, seed, 25),
        seed,
        samples: 120,
      });
    });
  }
});

/** Operations of all kinds by the seed, one after the other or a few at once (then each in its own part of the disk). */
async function churn(guest: Guest, seed: number, count: number): Promise<void> {
  let state = seed * 7919;
  const below = (limit: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % limit;
  };
  const one = async (index: number, from: number, to: number): Promise<void> => {
    const { unit, pack } = guest.image.format;
    const length = 1 + below(Math.min(6 * K, to - from - 1));
    const at = from + below(to - from - length);
    // parts of a cluster may stay as they are when they are discarded
    const whole = pack?.unit ?? unit;
    const start = Math.ceil(at / whole) * whole;
    switch (below(7)) {
      case 0:
        await guest.flush();
        break;
      case 1:
        await guest.zero(at, length, below(2) === 0);
        break;
      case 2: {
        const clusters = Math.min(1 + below(3), Math.floor((to - start) / whole));
        if (clusters > 0) await guest.discard(start, clusters * whole);
        break;
      }
      case 3: {
        const packed = pack === undefined ? to : Math.ceil(at / pack.unit) * pack.unit;
        if (pack !== undefined && packed + pack.unit <= to) await guest.pack(packed, seed + index);
        break;
      }
      default:
        await guest.write(at, length, seed + index);
    }
  };
  const { size } = guest.image;
  for (let index = 0; index < count; ) {
    if (below(3) > 0) {
      await one(index++, 0, size);
      continue;
    }
    const part = size / 4;
    await Promise.all([0, 1, 2, 3].map((which) => one(index + which, which * part, (which + 1) * part)));
    index += 4;
  }
}
