/** How `-l` names a snapshot of the source. */
import { Exit } from './errors.js';

/** What begins with `snapshot.` is a list of options; anything else is an id or a name. */
export function parseSnapshot(text: string): string {
  if (!text.startsWith('snapshot.')) return text;
  for (const word of text.split(',')) {
    const [name] = word.split('=') as [string];
    if (name !== 'snapshot.id' && name !== 'snapshot.name') {
      throw new Exit(
        1,
        `Invalid parameter '${name}'`,
        `qemu-img: Failed in parsing snapshot param '${text}'`,
      );
    }
  }
  return text;
}
