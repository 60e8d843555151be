/** docs/imgd.8: the daemon, from its table of settings. */

import { reloadable, SHELL_HELP, settings } from '../../src/daemon/config.js';
import { type Setting, variableOf } from '../../src/daemon/config-sources.js';
import { VERSION } from '../../src/daemon/version.js';
import { bold, italic, Page } from './man.js';

/** `maxJobs` is set by `max-jobs`. */
const flagOf = (member: string): string => {
  const known: Readonly<Record<string, string>> = {
    tokens: 'token-file',
    tls: 'tls-cert',
    allowOrigins: 'allow-origin',
    allowHosts: 'allow-host',
  };
  return known[member] ?? member.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
};

export function imgdPage(): string {
  const page = new Page('imgd', 8, VERSION, 'System administration');
  page.section('Name').raw('imgd \\- daemon that holds disk images and runs image operations as jobs');
  page
    .section('Synopsis')
    .raw(`.B imgd\n[${italic('OPTION')}]...`)
    .raw('.br')
    .raw(`.B imgd\n${italic('COMMAND')} [${italic('OPTION')}]...`);
  page
    .section('Description')
    .paragraph(
      'imgd holds virtual-disk images open under the locks of QEMU, so that a running machine and imgd never write one image at the same time, and runs every operation of qemu-img(1) as a job that can be watched, paused, slowed down and cancelled. Clients speak JSON-RPC 2.0 to it over a Unix socket, WebSocket or HTTP; qemu-img uses it where its socket is there.',
    );
  page
    .section('Options')
    .paragraph('What is not said by a flag is taken from the environment, then from the file of --config.');
  for (const setting of settings as readonly Setting[]) {
    const { flag, value, doc, repeat, once } = setting;
    const notes = [
      ...(setting.default === undefined ? [] : [`Default: ${setting.default}.`]),
      ...(repeat ? ['May be given more than once.'] : []),
      ...(once ? [] : [`In the environment: ${variableOf(setting)}.`]),
    ];
    const sentence = `${doc[0]!.toUpperCase()}${doc.slice(1)}.`;
    page.item(`${bold(`--${flag}`)}${value === undefined ? '' : ` ${italic(value)}`}`, sentence, ...notes);
  }
  const [title, ...lines] = SHELL_HELP.trimEnd().split('\n');
  page
    .section('Commands')
    .paragraph(title!)
    .example(...lines.map((line) => line.trim()));
  page
    .section('Configuration file')
    .paragraph(
      'Lines NAME = VALUE, where NAME is a long option without its dashes; lines that begin with # are comments. Options that may be given more than once may stand there more than once. A file that others may write is refused. imgd --check-config tells what is set, and by what.',
    );
  page.section('Environment');
  page.item(
    bold('IMGD_...'),
    'Each option as above. Those that may be given more than once hold several values with commas between.',
  );
  page.item(bold('XDG_RUNTIME_DIR'), 'Where the socket is when nothing says otherwise.');
  page.item(
    bold('LISTEN_FDS'),
    'Sockets that systemd hands over: a Unix socket, and a TCP socket for WebSocket and HTTP.',
  );
  page.item(bold('NOTIFY_SOCKET'), 'Told when imgd is ready, and when it stops.');
  page.section('Signals');
  page.item(
    bold('SIGTERM, SIGINT'),
    'Stop: nothing new is started, jobs are cancelled, or with --drain finished. A second one ends the daemon at once.',
  );
  page.item(
    bold('SIGHUP'),
    `Reads all settings again. These take effect: ${reloadable.map(flagOf).join(', ')}. A change of the others waits for the next start.`,
  );
  page.section('Exit status');
  page.item(bold('0'), 'It was told to stop, and has stopped.');
  page.item(bold('1'), 'It could not listen, was forced to stop, or failed.');
  page.item(bold('2'), 'A setting is wrong.');
  page.section('Files');
  page.item(italic('/run/imgd/imgd.sock'), 'The socket, where root starts imgd.');
  page.item(italic('$XDG_RUNTIME_DIR/imgd/imgd.sock'), 'The socket, where others do.');
  page
    .section('Security')
    .paragraph(
      'Whoever may connect to the Unix socket may have any image opened that the daemon can open, unless --root names folders that all images must be in, backing files and other files that an image refers to too. Over TCP every client shows a bearer token, whose role says what it may call: watch, operate or admin. Off the loopback addresses imgd speaks TLS only.',
    );
  page.section('See also').raw(`.BR qemu\\-img (1),\n${italic('docs/rpc.md')}`);
  return page.print();
}
