/** image-bench: requests of one size, so many at a time, and how long they take. */
import type { ImageBenchParams, ImageBenchResult } from '../../protocol/commands/image-bench.js';
import { errnoText, ImageError } from '../error.js';
import type { ImageNode } from '../node/image.js';
import { displayName, openImage } from '../node/open.js';
import type { OperationContext } from './context.js';

/** Buffers of all requests under way together. */
const MAX_BUFFERS = 2 ** 30;
/** Buffers begin where direct requests can use them as they are. */
const ALIGNMENT = 4096;
/** Requests that are started or ended between looks at pause and cancel. */
const REQUESTS_PER_TURN = 256;

interface Plan {
  readonly count: number;
  readonly depth: number;
  readonly size: number;
  readonly offset: number;
  readonly step: number;
  readonly pattern: number;
  readonly write: boolean;
  /** 0: no flushes. */
  readonly interval: number;
  readonly drain: boolean;
}

function planOf(params: ImageBenchParams): Plan {
  const size = params['buffer-size'] ?? 4096;
  const plan: Plan = {
    count: params.count ?? 75000,
    depth: params.depth ?? 64,
    size,
    offset: params.offset ?? 0,
    step: params.step || size,
    pattern: params.pattern ?? 0,
    interval: params['flush-interval'] ?? 0,
    write: params.write ?? false,
    drain: params['no-drain'] !== true,
  };
  if (!plan.write && plan.interval > 0) {
    throw new ImageError('invalid', '--flush-interval is only available in write tests');
  }
  if (plan.interval > 0 && plan.interval < plan.depth) {
    throw new ImageError('invalid', "Flush interval can't be smaller than depth");
  }
  return plan;
}

/** Buffers that begin at multiples of ALIGNMENT: one that all writes share, or one for each read under way. */
function buffers(plan: Plan): Uint8Array[] {
  const { write, pattern, size } = plan;
  const count = write ? 1 : Math.min(plan.depth, plan.count);
  const stride = Math.ceil(size / ALIGNMENT) * ALIGNMENT;
  if (stride * count > MAX_BUFFERS) {
    throw new ImageError('limit', `Requests under way need more than ${MAX_BUFFERS} bytes of memory`);
  }
  const memory = Buffer.allocUnsafeSlow(stride * count + ALIGNMENT);
  const start = (ALIGNMENT - (memory.byteOffset % ALIGNMENT)) % ALIGNMENT;
  if (write) memory.fill(pattern);
  return Array.from({ length: count }, (_, i) =>
    memory.subarray(start + i * stride, start + i * stride + size),
  );
}

class Bench {
  flushes = 0;
  readonly #image: ImageNode;
  readonly #plan: Plan;
  readonly #context: OperationContext;
  readonly #size: number;
  /** Buffers that no request uses. */
  readonly #free: Uint8Array[];
  #offset: number;
  #started = 0;
  #ended = 0;
  #underWay = 0;
  /** Set while all is waiting: a flush without other requests, a pause. */
  #held = false;
  /** Flushes that wait for nothing and that nothing waits for. */
  readonly #looseFlushes = new Set<Promise<void>>();
  #resolve: () => void = () => {};
  #reject: (reason: unknown) => void = () => {};
  #failed = false;

  constructor(image: ImageNode, plan: Plan, context: OperationContext) {
    this.#image = image;
    this.#plan = plan;
    this.#context = context;
    this.#size = image.size;
    this.#offset = plan.offset;
    this.#free = buffers(plan);
  }

  /** Ends when every request has, or with the first error, once nothing is under way. */
  run(): Promise<void> {
    return new Promise<void>((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
      this.#fill();
    });
  }

  #fill(): void {
    const { count, depth } = this.#plan;
    while (!this.#held && !this.#failed && this.#underWay < depth && this.#started < count) {
      this.#start();
      if (this.#started % REQUESTS_PER_TURN === 0) this.#look();
    }
  }

  #start(): void {
    const { write, size, step } = this.#plan;
    const at = this.#offset;
    // Past the end it goes on from the start.
    this.#offset = this.#size > 0 ? (at + step) % this.#size : 0;
    this.#started++;
    this.#underWay++;
    if (at + size > this.#size) {
      this.#fail(new ImageError('io', 'Failed request: Input/output error', { errno: 'EIO', offset: at }));
      this.#underWay--;
      this.#finish();
      return;
    }
    const buffer = write ? this.#free[0]! : this.#free.pop()!;
    const request = write ? this.#image.write(at, buffer) : this.#image.read(at, buffer);
    request.then(
      () => this.#end(buffer),
      (error: unknown) => {
        this.#fail(requestFailed(error));
        this.#end(buffer);
      },
    );
  }

  #end(buffer: Uint8Array): void {
    const { write, drain, interval } = this.#plan;
    if (!write) this.#free.push(buffer);
    this.#underWay--;
    this.#ended++;
    // Counted from the last request backwards, so that there is a flush at the end.
    if (!this.#failed && interval > 0 && (this.#plan.count - this.#started) % interval === 0) {
      if (!drain) this.#flushLoosely();
      else {
        // No new requests until those under way have ended and the flush after them too.
        this.#held = true;
        if (this.#underWay > 0) return;
        void this.#flushAlone();
        return;
      }
    }
    this.#fill();
    this.#finish();
  }

  async #flushAlone(): Promise<void> {
    try {
      this.flushes++;
      await this.#image.flush();
    } catch (error) {
      this.#fail(requestFailed(error));
    }
    this.#held = false;
    this.#fill();
    this.#finish();
  }

  #flushLoosely(): void {
    this.flushes++;
    const flush: Promise<void> = this.#image
      .flush()
      .catch((error: unknown) => this.#fail(requestFailed(error)))
      .finally(() => {
        this.#looseFlushes.delete(flush);
        this.#finish();
      });
    this.#looseFlushes.add(flush);
  }

  /** Progress, pause and cancel. */
  #look(): void {
    const { size } = this.#plan;
    this.#context.progress({ phase: 'bench', done: this.#ended * size, total: this.#plan.count * size });
    const waits = this.#context.pace(REQUESTS_PER_TURN * size);
    if (waits === undefined || this.#held) return;
    this.#held = true;
    waits
      .catch((error: unknown) => this.#fail(error))
      .then(() => {
        this.#held = false;
        this.#fill();
        this.#finish();
      });
  }

  #fail(error: unknown): void {
    if (this.#failed) return;
    this.#failed = true;
    this.#failure = error;
  }
  #failure: unknown;

  #finish(): void {
    if (this.#underWay > 0 || this.#held || this.#looseFlushes.size > 0) return;
    if (this.#failed) this.#reject(this.#failure);
    else if (this.#ended === this.#plan.count) this.#resolve();
  }
}

function requestFailed(error: unknown): unknown {
  if (!(error instanceof ImageError) || error.kind === 'cancelled') return error;
  const { errno } = error.context;
  const text = errno === undefined ? error.message : errnoText(errno);
  return new ImageError(error.kind, `Failed request: ${text}`, error.context, error);
}

/** Says on stdout what it is about to do. Throws `io` for a request that fails. */
export async function bench(params: ImageBenchParams, context: OperationContext): Promise<ImageBenchResult> {
  const plan = planOf(params);
  const image = await openImage(params.image, { writable: plan.write, guestOnly: true }, context);
  let seconds: number;
  let flushes: number;
  try {
    checkAio(params, image);
    const { count, depth, offset, step, size, interval } = plan;
    let text =
      `Sending ${count} ${plan.write ? 'write' : 'read'} requests, ${size} bytes each, ${depth} in parallel ` +
      `(starting at offset ${offset}, step size ${step})\n`;
    if (interval > 0) text += `Sending flush every ${interval} requests\n`;
    context.output({ stream: 'stdout', text });
    const work = new Bench(image, plan, context);
    const start = performance.now();
    await work.run();
    seconds = (performance.now() - start) / 1000;
    flushes = work.flushes;
  } catch (error) {
    await image.close().catch(() => {});
    throw error;
  }
  await image.close();
  return { seconds, requests: plan.count, flushes, bytes: plan.count * plan.size };
}

/** Linux's own asynchronous requests need a file without the page cache: checked, though this program asks otherwise. */
function checkAio(params: ImageBenchParams, image: ImageNode): void {
  if (params.aio !== 'native' || image.file.alignment > 1) return;
  if (params.image.cache === 'none' || params.image.cache === 'directsync') return;
  throw new ImageError(
    'invalid',
    `Could not open '${displayName(params.image)}': aio=native was specified, but it requires cache.direct=on, which was not specified.`,
  );
}
