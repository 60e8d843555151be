/** blkdebug's rules from where they are written: a file of sections, and options. */
import { ImageError } from '../../error.js';
import { type FlatOptions, typeOf } from '../flat-options.js';
import type { OptionDeclaration, OptionValue } from '../option-table.js';
import { type Rules, SECTIONS } from './blkdebug-rules.js';

interface Section {
  readonly name: string;
  readonly values: Record<string, OptionValue>;
}

function setValue(
  section: Section,
  declaration: OptionDeclaration | undefined,
  key: string,
  value: OptionValue,
  unknown: string,
): void {
  if (declaration === undefined) throw new ImageError('invalid', unknown);
  section.values[key] = typeOf(declaration, value);
}

/**
 * Lines of `[section]` or `[section "id"]`, `name = "value"`, comments after `#` at the start of a line. A value without its
 * quotes is empty, as QEMU has it.
 */
export function rulesFromText(text: string, rules: Rules): void {
  const sections: Section[] = [];
  for (const line of text.split('\n')) {
    if (/^\s*(#|$)/.test(line)) continue;
    const head = /^\s*\[\s*([^\s\]"]+)(?:\s+"[^"]*")?\s*\]/.exec(line);
    if (head !== null) {
      const name = head[1]!;
      if (!Object.hasOwn(SECTIONS, name)) {
        throw new ImageError('invalid', `There is no option group '${name}'`);
      }
      sections.push({ name, values: {} });
      continue;
    }
    const section = sections.at(-1);
    if (section === undefined) throw new ImageError('invalid', 'no group defined');
    const [, key, value = ''] = /^\s*(\S+)(?:\s*=\s*"([^"]*)")?/.exec(line) as unknown as string[];
    const declaration = SECTIONS[section.name]!.find((each) => each.name === key);
    setValue(section, declaration, key!, value, `Invalid parameter '${key}'`);
  }
  for (const { name, values } of sections) rules.add(name, values);
}

/** `inject-error.0.event=...`, `set-state.0....`: taken out of the options. */
export function rulesFromOptions(flat: FlatOptions, rules: Rules): void {
  for (const [name, declarations] of Object.entries(SECTIONS)) {
    const sections = new Map<string, Section>();
    for (const [path, value] of flat.takeChild(name).entries()) {
      const dot = path.indexOf('.');
      const index = dot < 0 ? path : path.slice(0, dot);
      const key = dot < 0 ? '' : path.slice(dot + 1);
      let section = sections.get(index);
      if (section === undefined) {
        section = { name, values: {} };
        sections.set(index, section);
      }
      if (value === null) continue;
      const declaration = declarations.find((each) => each.name === key);
      setValue(section, declaration, key, value, `[${name}] section doesn't support the option '${key}'`);
    }
    for (const { values } of sections.values()) rules.add(name, values);
  }
}
