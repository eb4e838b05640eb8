// The whole state of a search, and the page's address, which contains it: links, reloads and the back button work by it.

import { readTerm, writeTerm, type Term } from "./terms";

export type Modality = "image" | "text";
export type State = {
  terms: Term[];
  index: string | null; // null: the server's first
  modality: Modality;
  where: string;
  unique: boolean; // near-duplicates are left out
  varied: boolean; // hits that differ from each other come first
  sure: boolean; // hits that chance would give are left out
  open: number | null; // the row in the panel
  back: string | null; // another server than the page's own
  generation: string | null; // the build that ids of this address are of
};
export type Question = Pick<State, "terms" | "modality" | "where" | "unique" | "varied" | "sure"> & { index: string };

export const START: State = {
  terms: [],
  index: null,
  modality: "image",
  where: "",
  unique: false,
  varied: false,
  sure: false,
  open: null,
  back: null,
  generation: null,
};
const FLAGS = ["unique", "varied", "sure"] as const;

/** Return the state in an address; invalid parts are left out. clip-retrieval 2's links work too. */
export function readState(address: string): State {
  const said = new URLSearchParams(address);
  const terms = said.getAll("q").map(readTerm);
  const old = said.get("query");
  if (!terms.length && old?.trim()) terms.push({ kind: "text", text: old, weight: 1 });
  if (!terms.length && said.get("imageUrl")) terms.push(readTerm(`url:${said.get("imageUrl")}`));
  const open = said.get("open");
  const back = said.get("back");
  return {
    terms: terms.filter((term) => term !== null),
    index: said.get("index") || null,
    modality: said.get("in") === "text" ? "text" : "image",
    where: said.get("where") ?? "",
    unique: said.has("unique"),
    varied: said.has("varied"),
    sure: said.has("sure"),
    open: open && /^\d{1,15}$/.test(open) ? Number(open) : null,
    back: back && /^https?:\/\/[^\s]+$/i.test(back) ? back.replace(/\/+$/, "") : null,
    generation: said.get("build"),
  };
}

/** Return the address of a state: "?…", or "" for an untouched page. */
export function writeState(state: State): string {
  const said = new URLSearchParams();
  if (state.back) said.set("back", state.back);
  if (state.index) said.set("index", state.index);
  for (const term of state.terms) said.append("q", writeTerm(term));
  if (state.modality === "text") said.set("in", "text");
  if (state.where.trim()) said.set("where", state.where);
  for (const flag of FLAGS) if (state[flag]) said.set(flag, "");
  if (state.open !== null) said.set("open", String(state.open));
  const hasIds = state.open !== null || state.terms.some((term) => term.kind === "id");
  if (hasIds && state.generation) said.set("build", state.generation);
  const text = said.toString().replace(/=(?=&|$)/g, "");
  return text && `?${text}`;
}

/** Return a string that differs for different questions. */
export function questionKey(question: Question): string {
  const { index, terms, modality, where, unique, varied, sure } = question;
  return JSON.stringify([index, terms.map(writeTerm), modality, where.trim(), unique, varied, sure]);
}

/** Return a sentence that names a search, for the window's title and for screen readers. */
export function nameOf(terms: Term[]): string {
  const words = terms.map((term) => {
    const sign = term.weight < 0 ? "− " : "+ ";
    return sign + (term.kind === "text" ? term.text : term.kind === "id" ? `picture ${term.id}` : "a picture");
  });
  return words.join(" ").replace(/^\+ /, "");
}
