// The interface of a server: ours (it has /v1) or clip-retrieval 2's.

import type { Modality, Question } from "../state";
import { askJson, Problem } from "./http";
import { openLegacy } from "./legacy";
import { openV1 } from "./v1";

export type Hit = {
  id: number;
  similarity: number | null; // null: not found by a query
  metadata: Record<string, unknown>;
  surprise?: number;
  image?: string; // base64
};
export type About = {
  name: string;
  modalities: Modality[];
  count: number | null; // rows; null: the server does not say
  columns: string[];
  pictures: boolean; // the server has pictures of its rows
  files: boolean; // and the PDFs and videos that they are in
  generation: string | null;
};
export type Page = { hits: Hit[]; isLast: boolean; how: string[]; warning: string | null; generation: string | null };
export type Can = { sum: boolean; where: boolean; varied: boolean; sure: boolean };

export interface Back {
  base: string; // "" or "https://…", without a slash at its end
  can: Can;
  indices: About[];
  /** Return hits from a place on; the server may return more or fewer than `limit`. */
  search(question: Question, offset: number, limit: number, signal: AbortSignal): Promise<Page>;
  /** Return the rows most similar to a row of the index. */
  like(about: About, hit: Hit, modality: Modality, signal: AbortSignal): Promise<Hit[]>;
  /** Return some rows by their ids, with all their columns if the server lists them. */
  rows(about: About, ids: number[], signal: AbortSignal): Promise<Hit[]>;
  /** Return a picture as a part of a query. */
  embed(index: string, picture: string, signal: AbortSignal): Promise<{ kind: "vector"; vector: string } | null>;
  /** Return the address of a row's picture; null if the server has none. */
  pictureUrl(about: About, id: number, size: number | "original"): string | null;
  /** Return the address of the PDF or video of a row's picture; null if the server does not serve it. */
  fileUrl(about: About, id: number): string | null;
}
export type Config = { base: string; index: string | null; urlColumn: string; key: () => string | null };

type FrontConfig = { defaultBackend?: string; defaultIndex?: string; urlColumn?: string; backend?: string };

/** Return the config.json next to the page; a page without one uses the server that it comes from. */
export async function readConfig(page: string, back: string | null, key: () => string | null): Promise<Config> {
  let said: FrontConfig = {};
  try {
    said = await askJson<FrontConfig>(new URL("config.json", page).href);
  } catch (error) {
    if (!(error instanceof Problem) || error.passes) throw error;
  }
  const own = new URL(".", page).href;
  const base = back ?? (said.backend !== undefined ? new URL(said.backend, own).href : said.defaultBackend || own);
  return {
    base: base.replace(/\/+$/, ""),
    index: said.defaultIndex || null,
    urlColumn: said.urlColumn || "url",
    key,
  };
}

/** Return the server at the configured address. Throws Problem. */
export async function openBack(config: Config, signal: AbortSignal): Promise<Back> {
  try {
    return await openV1(config, signal);
  } catch (error) {
    if (!(error instanceof Problem) || !["missing", "broken", "refused"].includes(error.kind)) throw error;
    return openLegacy(config, signal);
  }
}
