// Our server: /v1 (docs/server.md).

import type { Modality } from "../state";
import type { Term } from "../terms";
import { packVector, readFloats, unpackVector } from "../vectors";
import type { About, Back, Config, Hit, Page } from "./back";
import { askJson, Problem } from "./http";
import { signLink } from "./links";

export const NEAR_DUPLICATE = 0.94; // cosine, as in clip-retrieval 2
const DIVERSITY = 0.5;
const SURPRISE = 0.1; // rows that would score as high by chance
const MOST_RESULTS = 10_000; // of a query, unless the server's --max_results is lower
const MOST_VARIED = 300; // a later page of varied hits would be chosen differently, so there is only one page
const NEIGHBORS = 18;

type Listed = { indices: (Omit<About, "modalities" | "count"> & { rows: Partial<Record<Modality, number>> })[] };
type V1Hit = { id: number; similarity: number; metadata: Record<string, unknown>; surprise?: number; image?: string };
type Found = { generation: string; results: { hits: V1Hit[]; how: string[]; warning?: string }[] };

export async function openV1(config: Config, signal: AbortSignal): Promise<Back> {
  const { base } = config;
  const post = <T>(path: string, body: unknown, until: AbortSignal) =>
    askJson<T>(`${base}${path}`, { body, key: config.key(), signal: until });
  const listed = await askJson<Listed>(`${base}/v1/indices`, { key: config.key(), signal });
  if (!Array.isArray(listed?.indices)) throw new Problem("missing", "there is no /v1 here");
  const indices = listed.indices.map(
    ({ name, rows, columns, pictures, files, generation }): About => ({
      name,
      modalities: Object.keys(rows) as Modality[],
      count: Math.max(0, ...Object.values(rows)),
      columns,
      pictures: pictures ?? true,
      files: files ?? false,
      generation,
    }),
  );

  async function find(index: string, terms: unknown[], more: Record<string, unknown>, until: AbortSignal): Promise<Page> {
    const found = await post<Found>("/v1/search", { queries: [terms], index, ...more }, until);
    const { hits, how, warning } = found.results[0]!;
    return { hits: hits.map(asHit), isLast: false, how, warning: warning ?? null, generation: found.generation };
  }

  return {
    base,
    can: { sum: true, where: true, varied: true, sure: true },
    indices,
    async search(question, offset, limit, until) {
      const most = question.varied ? MOST_VARIED : MOST_RESULTS;
      const wanted = Math.min(question.varied ? MOST_VARIED : limit, most - offset);
      const selection = {
        modality: question.modality,
        limit: wanted,
        offset,
        where: question.where.trim() || null,
        deduplicate: question.unique ? NEAR_DUPLICATE : null,
        diverse: question.varied ? DIVERSITY : null,
        surprise: question.sure ? SURPRISE : null,
      };
      const page = await find(question.index, question.terms.map(asTerm), selection, until);
      return { ...page, isLast: page.hits.length < wanted || offset + wanted >= most };
    },
    async like(about, hit, modality, until) {
      return (await find(about.name, [{ id: hit.id }], { modality, limit: NEIGHBORS }, until)).hits;
    },
    async rows(about, ids, until) {
      const { name, generation, pictures } = about;
      const columns = pictures ? about.columns : [...about.columns, "image"]; // thumbnails, if pictures are not served
      const body = { ids, indice_name: name, columns, generation };
      const rows = await post<{ id: number; metadata: Hit["metadata"] }[]>("/metadata", body, until);
      return rows.map(({ id, metadata: { image, ...metadata } }) => ({
        id,
        similarity: null,
        metadata,
        ...(typeof image === "string" ? { image } : {}),
      }));
    },
    async embed(index, picture, until) {
      type Embedded = { data: { embedding: string }[] };
      const body = { input: [{ image: picture }], index, encoding_format: "base64" };
      const { data } = await post<Embedded>("/v1/embed", body, until);
      return { kind: "vector", vector: packVector(readFloats(data[0]!.embedding)) };
    },
    pictureUrl(about, id, size) {
      if (!about.pictures) return null;
      const build = about.generation ? `&generation=${about.generation}` : "";
      const how = size === "original" ? "original=1" : `size=${size}`;
      return `${base}/v1/pictures/${encodeURIComponent(about.name)}/${id}?${how}${build}`;
    },
    fileUrl(about, id) {
      if (!about.files) return null;
      const key = config.key();
      const asked = new URLSearchParams({
        ...(about.generation ? { generation: about.generation } : {}),
        ...(key ? signLink(key, `/v1/files/${about.name}/${id}`, Date.now() / 1000) : {}),
      });
      return `${base}/v1/files/${encodeURIComponent(about.name)}/${id}${asked.size ? `?${asked}` : ""}`;
    },
  };
}

function asHit({ id, similarity, metadata, surprise, image }: V1Hit): Hit {
  return { id, similarity, metadata, ...(surprise === undefined ? {} : { surprise }), ...(image ? { image } : {}) };
}

function asTerm(term: Term): unknown {
  const { weight } = term;
  switch (term.kind) {
    case "text":
      return { text: term.text, weight };
    case "id":
      return { id: term.id, weight };
    case "url":
      return { image_url: term.url, weight };
    case "vector": {
      const embedding = unpackVector(term.vector);
      if (!embedding) throw new Problem("refused", "The picture in this address is damaged; add it again.");
      return { embedding, weight };
    }
    case "picture":
      throw new Problem("refused", "The picture in this address is in another tab; add it again.");
  }
}
