// The query: texts, pictures and rows of the index, added and subtracted.

export type Part =
  | { kind: "text"; text: string }
  | { kind: "id"; id: number } // more like this row
  | { kind: "vector"; vector: string } // a picture's embedding, see vectors.ts
  | { kind: "url"; url: string } // a picture that the server fetches
  | { kind: "picture"; key: string }; // a picture that this tab holds, for servers that embed none (clip-retrieval 2)
export type Term = Part & { weight: number };

const WEIGHT = /^(-?(?:\d+(?:\.\d*)?|\.\d+))\*/;
const MARKED = /^(text|id|vec|url|pic):/s;

/** Return a term as one word of the page's address. */
export function writeTerm(term: Term): string {
  const weight = term.weight === 1 ? "" : `${term.weight}*`;
  switch (term.kind) {
    case "text":
      return weight + (WEIGHT.test(term.text) || MARKED.test(term.text) ? `text:${term.text}` : term.text);
    case "id":
      return `${weight}id:${term.id}`;
    case "vector":
      return `${weight}vec:${term.vector}`;
    case "url":
      return `${weight}url:${term.url}`;
    case "picture":
      return `${weight}pic:${term.key}`;
  }
}

/** Return the term that a word of an address means; null if it is invalid, since anyone may write an address. */
export function readTerm(word: string): Term | null {
  const found = WEIGHT.exec(word);
  const weight = found ? Number(found[1]) : 1;
  const rest = found ? word.slice(found[0].length) : word;
  const mark = MARKED.exec(rest)?.[1];
  const value = mark ? rest.slice(mark.length + 1) : rest;
  const part = readPart(mark, value);
  return part && weight !== 0 && Number.isFinite(weight) ? { ...part, weight } : null;
}

function readPart(mark: string | undefined, value: string): Part | null {
  switch (mark) {
    case "id":
      return /^\d{1,15}$/.test(value) ? { kind: "id", id: Number(value) } : null;
    case "vec":
      return /^[\w-]+$/.test(value) ? { kind: "vector", vector: value } : null;
    case "url":
      return /^https?:\/\//i.test(value) ? { kind: "url", url: value } : null;
    case "pic":
      return /^[\w-]+$/.test(value) ? { kind: "picture", key: value } : null;
    default:
      return value.trim() ? { kind: "text", text: value } : null;
  }
}

/** Return the terms of what was typed: "beach + 0.5*sunset - people", signs with space on both sides, as for `filter`. */
export function parseTyped(typed: string): Term[] {
  const text = typed.trim();
  const pieces = splitAtSigns(text);
  if (pieces.length === 1) return text ? [{ ...typedPart(text), weight: 1 }] : [];
  return pieces.flatMap(([sign, piece]): Term[] => {
    const found = /^\s*(\d+(?:\.\d*)?|\.\d+)\s*\*\s*(?=\S)/.exec(piece);
    const words = (found ? piece.slice(found[0].length) : piece).trim();
    const weight = found ? Number(found[1]) : 1;
    return words && weight ? [{ ...typedPart(words), weight: sign === "-" ? -weight : weight }] : [];
  });
}

/** Return a picture for a web address, as `filter` does, else a text; quotes keep an address a text. */
function typedPart(words: string): Part {
  return /^https?:\/\/\S+$/i.test(words) ? { kind: "url", url: words } : { kind: "text", text: unquote(words) };
}

function splitAtSigns(text: string): [string, string][] {
  const pieces: [string, string][] = [];
  let sign = "+";
  let start = 0;
  let at = 0;
  const first = /^\s*([+-])\s+(?=\S)/.exec(text);
  if (first && /\s[+-]\s/.test(text.slice(first[0].length))) {
    sign = first[1]!;
    start = at = first[0].length;
  }
  while (at < text.length) {
    if (/["']/.test(text[at]!) && /^[\s\d.*]*$/.test(text.slice(start, at))) {
      at = endOfQuote(text, at);
      continue;
    }
    const found = /^\s([+-])\s/.exec(text.slice(at, at + 3));
    if (found) {
      pieces.push([sign, text.slice(start, at)]);
      sign = found[1]!;
      start = at = at + 2;
      continue;
    }
    at += 1;
  }
  pieces.push([sign, text.slice(start)]);
  return pieces;
}

function endOfQuote(text: string, start: number): number {
  for (let end = text.indexOf(text[start]!, start + 1); end >= 0; end = text.indexOf(text[start]!, end + 1)) {
    if (end + 1 === text.length || /^\s[+-]\s/.test(text.slice(end + 1, end + 4))) return end + 1;
  }
  return start + 1;
}

function unquote(text: string): string {
  const mark = text[0];
  const inner = text.slice(1, -1);
  return text.length >= 2 && (mark === '"' || mark === "'") && text.endsWith(mark) && !inner.includes(mark) ? inner : text;
}

/** Return the next weight up or down, without 0: a part of weight 0 would have no effect. */
export function stepWeight(weight: number, step: 0.5 | -0.5): number {
  const next = Math.round((weight + step) * 100) / 100;
  return next === 0 ? step : Math.max(-3, Math.min(3, next));
}

/** Return how a weight is shown: nothing for 1, a minus sign for -1. */
export function showWeight(weight: number): string {
  const size = Math.abs(weight);
  return (weight < 0 ? "−" : "") + (size === 1 ? "" : `${size}×`);
}
