// clip-retrieval 2's server: /indices-list, /knn-service and /metadata. One text or picture at a time, no conditions.

import { keptPicture } from "../pictures";
import type { Question } from "../state";
import type { Term } from "../terms";
import type { About, Back, Config, Hit, Page } from "./back";
import { askJson, Problem } from "./http";

const MOST_IDS = 3_000; // as many as clip-retrieval 2's own front requests
const NEIGHBORS = 18;

type Row = Record<string, unknown> & { id: number; similarity: number; image?: string };

export async function openLegacy(config: Config, signal: AbortSignal): Promise<Back> {
  const { base } = config;
  const post = <T>(path: string, body: unknown, until: AbortSignal) =>
    askJson<T>(`${base}${path}`, { body, key: config.key(), signal: until });
  const names = await askJson<string[]>(`${base}/indices-list`, { key: config.key(), signal });
  if (!Array.isArray(names)) throw new Problem("broken", `There is no clip-retrieval server at ${base}.`);
  const asked = new Map<string, { id: number; similarity: number }[]>(); // ids of the last question, for its pages

  async function knn(index: string, input: Input, question: Partial<Question>, counts: [number, number], until: AbortSignal) {
    const [num_images, num_result_ids] = counts;
    return post<Row[]>(
      "/knn-service",
      {
        text: null, image: null, image_url: null, embedding_input: null, ...input,
        modality: question.modality ?? "image", num_images, num_result_ids, indice_name: index,
        deduplicate: question.unique ?? false, use_mclip: false, use_safety_model: false, use_violence_detector: false,
        aesthetic_score: "", aesthetic_weight: "",
      }, // prettier-ignore
      until,
    );
  }
  async function rows(index: string, ids: number[], until: AbortSignal): Promise<Hit[]> {
    const found = await post<{ id: number; metadata: Record<string, unknown> }[]>(
      "/metadata", { ids, indice_name: index }, until,
    ); // prettier-ignore
    return found.map(({ id, metadata }) => asHit({ ...metadata, id, similarity: NaN }));
  }

  return {
    base,
    can: { sum: false, where: false, varied: false, sure: false },
    indices: names.map((name): About => ({
      name, modalities: ["image", "text"], count: null, columns: [], pictures: false, files: false, generation: null,
    })), // prettier-ignore
    async search(question, offset, limit, until): Promise<Page> {
      const about = { how: [], warning: null, generation: null };
      const key = JSON.stringify(question);
      if (offset === 0) {
        const found = await knn(question.index, asInput(question.terms), question, [limit, MOST_IDS], until);
        asked.clear();
        asked.set(key, found.map(({ id, similarity }) => ({ id, similarity })));
        const hits = found.slice(0, limit).map(asHit);
        return { hits, isLast: found.length <= limit, ...about };
      }
      const ids = asked.get(key) ?? [];
      const wanted = ids.slice(offset, offset + Math.min(limit, 100));
      const found = new Map((await rows(question.index, wanted.map(({ id }) => id), until)).map((hit) => [hit.id, hit]));
      const hits = wanted.map(({ id, similarity }) => ({ ...(found.get(id) ?? { id, metadata: {} }), similarity }));
      return { hits, isLast: offset + wanted.length >= ids.length, ...about };
    },
    async like(about, hit, modality, until) {
      const input = hit.image ? { image: hit.image } : { image_url: String(hit.metadata[config.urlColumn] ?? "") };
      if (!input.image && !input.image_url) return [];
      const found = await knn(about.name, input, { modality }, [NEIGHBORS, NEIGHBORS], until);
      return found.map(asHit).filter(({ id }) => id !== hit.id);
    },
    rows: (about, ids, until) => rows(about.name, ids, until),
    embed: () => Promise.resolve(null),
    pictureUrl: () => null,
    fileUrl: () => null,
  };
}

type Input = { text?: string; image?: string; image_url?: string };

function asInput(terms: Term[]): Input {
  const term = terms[0];
  if (terms.length !== 1 || !term || term.weight < 0) {
    throw new Problem("refused", "This server (clip-retrieval 2) takes one text or one picture at a time.");
  }
  if (term.kind === "text") return { text: term.text };
  if (term.kind === "url") return { image_url: term.url };
  const image = term.kind === "picture" ? keptPicture(term.key) : null;
  if (image) return { image };
  throw new Problem("refused", "The picture in this address is not in this tab; add it again.");
}

function asHit({ id, similarity, image, ...metadata }: Row): Hit {
  const hit: Hit = { id, similarity: Number.isFinite(similarity) ? similarity : null, metadata };
  return typeof image === "string" && image ? { ...hit, image } : hit;
}
