/** Pages in the man(7) macros. */

/** Running text: nothing in it is a request or an escape. */
export function text(words: string): string {
  return words
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll("'", '\\(aq')
    .replaceAll('`', '\\(ga')
    .replaceAll('^', '\\(ha')
    .replaceAll('~', '\\(ti')
    .replace(/^\./gm, '\\&.');
}

/** An argument of a macro. */
const argument = (words: string): string => `"${text(words).replaceAll('"', '\\(dq')}"`;

export const bold = (words: string): string => `\\fB${text(words)}\\fR`;
export const italic = (words: string): string => `\\fI${text(words)}\\fR`;

export class Page {
  readonly #lines: string[];

  constructor(name: string, section: number, version: string, manual: string) {
    // Without a date: the page must not change when nothing does.
    this.#lines = [
      '.\\" Made from the declarations by "npm run docs": do not edit.',
      `.TH ${argument(name.toUpperCase())} ${section} "" ${argument(`imgd ${version}`)} ${argument(manual)}`,
    ];
  }

  section(title: string): this {
    this.#lines.push(`.SH ${argument(title.toUpperCase())}`);
    return this;
  }

  subsection(title: string): this {
    this.#lines.push(`.SS ${argument(title)}`);
    return this;
  }

  paragraph(words: string): this {
    this.#lines.push('.PP', text(words));
    return this;
  }

  /** A line that has its escapes already. */
  raw(line: string): this {
    this.#lines.push(line);
    return this;
  }

  /** A term and what it means. @param term with its escapes. */
  item(term: string, ...words: readonly string[]): this {
    this.#lines.push('.TP', term, ...words.map(text));
    return this;
  }

  /** Lines as they are. */
  example(...lines: readonly string[]): this {
    this.#lines.push('.PP', '.nf', '.RS 4', ...lines.map(text), '.RE', '.fi');
    return this;
  }

  print(): string {
    return `${this.#lines.join('\n')}\n`;
  }
}

/** Words in capitals are what the user puts in: `-f FMT`. */
export function usageLine(line: string): string {
  return line
    .split(/([\s[\]|,=]+)/)
    .map((word) => {
      if (/^-/.test(word)) return bold(word);
      if (/^[A-Z][A-Z0-9_:.]*$/.test(word)) return italic(word);
      return text(word);
    })
    .join('');
}
