/** QEMU's storage daemon, spoken to over QMP on its standard streams. */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { reference } from './reference.js';

export interface QmpAnswer {
  // biome-ignore lint/suspicious/noExplicitAny: tests look into results of many shapes
  readonly return?: any;
  readonly error?: { readonly class: string; readonly desc: string };
}

export class StorageDaemon {
  readonly process: ChildProcessWithoutNullStreams;
  readonly #waiting: ((answer: QmpAnswer) => void)[] = [];

  private constructor(child: ChildProcessWithoutNullStreams) {
    this.process = child;
    let text = '';
    child.stdout.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const line = JSON.parse(text.slice(0, end)) as QmpAnswer;
        text = text.slice(end + 1);
        if (!('event' in line)) this.#waiting.shift()?.(line);
      }
    });
  }

  /** Whoever starts it ends it. */
  static async start(cwd?: string): Promise<StorageDaemon> {
    const args = ['--chardev', 'stdio,id=c', '--monitor', 'chardev=c'];
    const daemon = new StorageDaemon(
      spawn(reference.qemuStorageDaemon!, args, cwd === undefined ? {} : { cwd }),
    );
    await daemon.#line();
    await daemon.call('qmp_capabilities');
    return daemon;
  }

  #line(): Promise<QmpAnswer> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  call(execute: string, args?: unknown): Promise<QmpAnswer> {
    const answer = this.#line();
    const message = { execute, ...(args === undefined ? {} : { arguments: args }) };
    this.process.stdin.write(`${JSON.stringify(message)}\n`);
    return answer;
  }
}
