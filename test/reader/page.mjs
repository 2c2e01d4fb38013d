// Reads a page of the documentation as its reader does: sections, and the fenced blocks in them, in their
// order.

import { readFileSync } from 'node:fs';

/**
 * The section of a Markdown text that has this heading, up to the next of its level: its words, and its blocks. A
 * block's language is "" where the fence names none, as with what a command prints.
 */
export function readSection(file, heading) {
  const text = readFileSync(file, 'utf8');
  const sections = text.split(/^(?=## )/m);
  const section = sections.find((part) => part.startsWith(`## ${heading}\n`));
  if (!section) throw new Error(`${file} has no section "${heading}"`);
  const blocks = [...section.matchAll(/^```(\w*)\n(.*?)^```$/gms)].map(([, language, content]) => ({
    language,
    text: content,
    lines: content.trimEnd().split('\n'),
  }));
  return { heading, words: section, blocks };
}
