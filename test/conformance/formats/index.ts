/** The cases of all formats: every other file of this folder is one, whatever name it exports it by. */
import { readdir } from 'node:fs/promises';
import { basename, extname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { FormatCase } from '../case.js';

function isCase(value: unknown): value is FormatCase {
  return typeof value === 'object' && value !== null && 'format' in value && 'does' in value;
}

export interface Cases {
  readonly cases: readonly FormatCase[];
  /** Files that do not load, or hold no case, and why. */
  readonly broken: readonly { readonly file: string; readonly reason: string }[];
}

export async function loadCases(): Promise<Cases> {
  const cases: FormatCase[] = [];
  const broken: { file: string; reason: string }[] = [];
  for (const file of (await readdir(import.meta.dirname)).sort()) {
    if (!/\.[jt]s$/.test(file) || basename(file, extname(file)) === 'index') continue;
    try {
      const url = pathToFileURL(join(import.meta.dirname, file)).href;
      const exported: Record<string, unknown> = await import(/* @vite-ignore */ url);
      const found = Object.values(exported).filter(isCase);
      if (found.length === 0) broken.push({ file, reason: 'exports no FormatCase' });
      cases.push(...found);
    } catch (error) {
      broken.push({ file, reason: String(error) });
    }
  }
  return { cases, broken };
}
