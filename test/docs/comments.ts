/** The comments of declarations, which are gone at run time: read from the sources, so that they are written once. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** Texts by the name of what is declared, and its members' by their path: `ImageRef`, `imageConvert.params.target.node`. */
export type Comments = ReadonlyMap<string, string>;

const TOKEN =
  /\/\*\*([\s\S]*?)\*\/|\/\/[^\n]*|'(?:[^'\\\n]|\\.)*'\s*:|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|`(?:[^`\\]|\\.)*`|\/\^(?:[^/\\\n]|\\.)+\/|\.\.\.[\w.]+|[\w$]+\s*:(?!:)|[{}]|^(?:export )?const (\w+)|^\S/gm;

/** Reads `/** ... *\/` before declarations and before members of object literals in them. */
export function readComments(file: string, into: Map<string, string>): void {
  const text = readFileSync(file, 'utf8');
  let path: string[] = [];
  let key: string | undefined;
  let comment: string | undefined;
  for (const match of text.matchAll(TOKEN)) {
    const [token, said, declared] = match;
    if (said !== undefined) {
      comment = said
        .split('\n')
        .map((line) => line.replace(/^\s*\*?\s?/, '').trim())
        .join(' ')
        .trim();
    } else if (declared !== undefined) {
      path = [];
      key = declared;
      if (comment !== undefined) into.set(declared, comment);
      comment = undefined;
    } else if (token === '{') path.push(key ?? '');
    else if (token === '}') {
      path.pop();
      comment = undefined;
    } else if (token.startsWith('...')) {
      into.set(
        `${path.filter(Boolean).join('.')}...`,
        [
          ...(into.get(`${path.filter(Boolean).join('.')}...`)?.split(' ') ?? []),
          token.slice(3).replace('.entries', ''),
        ].join(' '),
      );
    } else if (token.endsWith(':')) {
      key = token.slice(0, -1).trim().replace(/^'|'$/g, '');
      if (comment !== undefined) into.set([...path, key].filter(Boolean).join('.'), comment);
      comment = undefined;
    }
  }
}

export function protocolComments(root: string): Comments {
  const found = new Map<string, string>();
  for (const folder of ['src/protocol', 'src/protocol/commands']) {
    for (const name of readdirSync(join(root, folder)).sort()) {
      if (name.endsWith('.ts')) readComments(join(root, folder, name), found);
    }
  }
  return found;
}

/** A member's comment: its own, or that of what is spread into the object that it stands in. */
export function commentOf(comments: Comments, owner: string, member: string): string | undefined {
  const own = comments.get(`${owner}.${member}`);
  if (own !== undefined) return own;
  for (const spread of comments.get(`${owner}...`)?.split(' ') ?? []) {
    const theirs = commentOf(comments, spread, member);
    if (theirs !== undefined) return theirs;
  }
  return undefined;
}
