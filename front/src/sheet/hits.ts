// The hits of a sheet: their cells, which of them match, and the order in which they are shown.

import { lastPart } from "../shared/places";

export type Cell = string | number | boolean | null | Cell[] | { [name: string]: Cell };
export type Row = { rank: number; id: number; similarity: number; [column: string]: Cell };
export type Hit = { row: Row; thumbnail: string | null; problem: string | null; file: string | null; source?: string };
export type Query = { number: number; text: string; kind: string | null; problem: string | null; count: number; hits: Hit[] };
export type Page = { title: string; version: string; isBatch: boolean; queries: Query[] };
export type Facet = { column: string; values: [string, number][] };
export type Chosen = Record<string, string[]>; // values by column

const OWN = ["rank", "id", "similarity", "surprise", "picture", "problem", "query", "query_text"];
const PLACES = ["caption", "image_path", "page", "frame", "time_seconds", "shard_offset", "shard_size", "width", "height", "original_width", "original_height"];
const LIKELY = ["label", "labels", "cluster", "class", "category", "shard", "video", "split", "license", "source"];
const MOST_FACETS = 4;
const MOST_VALUES = 30;
const SHOWN_VALUES = 12;

export const nameOf = (hit: Hit): string => String(hit.row.caption || lastPart(String(hit.row.image_path ?? "")) || `row ${hit.row.id}`);
export const pathOf = (hit: Hit): string => String(hit.row.image_path ?? hit.row.picture ?? hit.row.id);

/** Return a cell as readable text. */
export function show(cell: Cell | undefined): string {
  if (cell === null || cell === undefined) return "";
  if (typeof cell === "number") return Number.isInteger(cell) ? String(cell) : String(Number(cell.toPrecision(6)));
  if (typeof cell === "object") return Array.isArray(cell) ? cell.map(show).join(", ") : JSON.stringify(cell);
  return String(cell);
}

/** Return the values of a cell that a facet counts: each value of a list, the last part of a path. */
export function facetValues(column: string, cell: Cell | undefined): string[] {
  const cells = Array.isArray(cell) ? cell : [cell ?? null];
  const texts = cells.filter((one) => one !== null && typeof one !== "object").map(show);
  return [...new Set(["shard", "video"].includes(column) ? texts.map((text) => text.split("/").at(-1)!) : texts)].filter(Boolean);
}

export function columnsOf(hits: Hit[]): string[] {
  return [...new Set(hits.flatMap((hit) => Object.keys(hit.row)))];
}

/** Choose up to four columns with few, repeated values; columns with likely names come first. */
export function chooseFacets(hits: Hit[]): Facet[] {
  const facets: Facet[] = [];
  for (const column of columnsOf(hits).filter((name) => ![...OWN, ...PLACES].includes(name))) {
    const counts = new Map<string, number>();
    for (const hit of hits) for (const value of facetValues(column, hit.row[column])) counts.set(value, (counts.get(value) ?? 0) + 1);
    const isReal = hits.some((hit) => typeof hit.row[column] === "number" && !Number.isInteger(hit.row[column]));
    if (isReal || counts.size < 2 || counts.size > MOST_VALUES || counts.size > hits.length / 2) continue;
    const values = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
    facets.push({ column, values: values.slice(0, SHOWN_VALUES) });
  }
  const place = ({ column }: Facet) => (LIKELY.includes(column) ? LIKELY.indexOf(column) : LIKELY.length);
  return facets.sort((a, b) => place(a) - place(b)).slice(0, MOST_FACETS);
}

/** Return the texts of a hit that the filter box searches, in lower case. */
export function searchable(hit: Hit): string {
  return Object.values(hit.row).filter((cell) => typeof cell !== "number").map(show).join("\n").toLowerCase();
}

export function matches(hit: Hit, text: string, words: string[], chosen: Chosen): boolean {
  if (!words.every((word) => text.includes(word))) return false;
  return Object.entries(chosen).every(
    ([column, wanted]) => !wanted.length || facetValues(column, hit.row[column]).some((value) => wanted.includes(value)),
  );
}

/** Return the columns to sort by: one plain value in each hit, not the same in all. */
export function orderColumns(hits: Hit[]): string[] {
  const plain = columnsOf(hits).filter(
    (name) => !["rank", "similarity", "picture", "problem"].includes(name) && hits.every((hit) => typeof hit.row[name] !== "object" || hit.row[name] === null),
  );
  return plain.filter((name) => new Set(hits.map((hit) => hit.row[name])).size > 1);
}

/** Sort by a column, "" for the rank; hits without a value come last either way. */
export function inOrder(hits: Hit[], column: string, isReversed: boolean): Hit[] {
  const turn = isReversed ? -1 : 1;
  const value = (hit: Hit) => (column ? hit.row[column] : hit.row.rank);
  const isMissing = (cell: Cell | undefined) => cell === null || cell === undefined || cell === "";
  return [...hits].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (isMissing(x) || isMissing(y)) return Number(isMissing(x)) - Number(isMissing(y)) || a.row.rank - b.row.rank;
    const isNumber = typeof x === "number" && typeof y === "number";
    const order = isNumber ? x - y : show(x).localeCompare(show(y), "en", { numeric: true });
    return turn * order || a.row.rank - b.row.rank;
  });
}
