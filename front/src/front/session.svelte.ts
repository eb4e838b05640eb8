// What the page knows and does: one search at a time, its hits, and the current problem.

import { SvelteSet } from "svelte/reactivity";
import { openBack, readConfig, type About, type Back, type Config, type Hit } from "./api/back";
import { ask, insist, Problem, type Waiting } from "./api/http";
import { digest, keepPicture, keptPicture, preparePicture } from "./pictures";
import { leadTo, placeIn, type Place } from "../shared/places";
import { nameOf, questionKey, readState, writeState, type Question, type State } from "./state";
import type { Part, Term } from "./terms";

const FIRST_PAGE = 60; // hits; pages grow, so ten thousand hits take about fourteen requests
const LARGEST_PAGE = 1_000;
const MOST_REMEMBERED = 8; // searches that the back button restores
const SLOW_MS = 4_000;
const KEY = "clip-retrieval key ";

type Remembered = { hits: Hit[]; isLast: boolean; how: string[]; warning: string | null; generation: string | null };
const NOTHING: Remembered = { hits: [], isLast: true, how: [], warning: null, generation: null };

export class Session {
  state = $state.raw<State>(readState(location.search));
  back = $state.raw<Back | null>(null);
  found = $state.raw<Remembered>(NOTHING);
  loading = $state(false);
  slow = $state(false);
  problem = $state.raw<Problem | null>(null); // retrying would not help
  waiting = $state.raw<Waiting | null>(null); // for the next try
  needsKey = $state(false);
  keyWasWrong = $state(false);
  adding = $state(false); // a picture is on its way into the query
  selected = new SvelteSet<number>();
  isRange = $state(false); // the next hit that is pressed ends a range of selected ones
  gone = new SvelteSet<number>(); // rows whose picture is not available
  active = $state(0); // place of the tile that has or had the focus
  isFlying = $state(false); // the page scrolls too fast to see pictures: new ones are not requested
  epoch = $state(0); // grows when the server answers again: failed pictures are requested again
  known = new Map<number, Hit>(); // hits by id, for the panel

  private config: Config | null = null;
  private running = new AbortController();
  private key: string | null = null; // of the search in `found`
  private remembered = new Map<string, Remembered>();
  private refreshed = 0;

  get about(): About | null {
    const { indices } = this.back ?? { indices: [] };
    return (this.state.index === null ? indices[0] : indices.find(({ name }) => name === this.state.index)) ?? null;
  }
  /** The address has ids of another build: they may be other rows now. */
  get isStale(): boolean {
    const { terms, open, generation } = this.state;
    const hasIds = open !== null || terms.some(({ kind }) => kind === "id");
    return hasIds && generation !== null && !!this.about?.generation && generation !== this.about.generation;
  }
  get question(): Question | null {
    return this.about && this.state.terms.length ? { ...this.state, index: this.about.name } : null;
  }
  get urlColumn(): string {
    return this.config?.urlColumn ?? "url";
  }
  get hits(): Hit[] {
    return this.found.hits;
  }

  // The server's key, kept for this server until the tab is closed.
  get apiKey(): string | null {
    return this.config && sessionStorage.getItem(KEY + this.config.base);
  }
  enterKey(key: string): void {
    if (this.config) sessionStorage.setItem(KEY + this.config.base, key.trim());
    this.needsKey = false;
    void this.begin();
  }

  /** Find the server, then do what the address says. */
  async begin(): Promise<void> {
    this.running.abort();
    this.running = new AbortController();
    const { signal } = this.running;
    this.problem = null;
    this.loading = true;
    try {
      await insist(
        async () => {
          this.config = await readConfig(document.baseURI, this.state.back, () => this.apiKey);
          this.back = await openBack(this.config, signal);
        },
        signal,
        (waiting) => (this.waiting = waiting),
      );
      if (!this.state.index && this.config?.index) this.state = { ...this.state, index: this.config.index };
      this.epoch++;
      this.loading = false;
      this.key = null;
      this.follow();
    } catch (error) {
      this.fail(error, signal);
    }
  }

  /** Change the state and the address; this adds an entry to the history unless it only replaces the last. */
  go(change: Partial<State>, how: "push" | "replace" = "push"): void {
    if (how === "push") history.replaceState({ scroll: scrollY }, "");
    if (change.index !== undefined && change.index !== this.about?.name) this.forgetRows();
    const generation = this.about?.generation ?? null;
    this.state = { ...this.state, ...change, generation };
    const address = writeState(this.state) || location.pathname;
    if (how === "push") history.pushState({ scroll: 0 }, "", address);
    else history.replaceState(history.state, "", address);
    this.follow();
  }
  ask(terms: Term[], change: Partial<State> = {}): void {
    this.go({ terms, open: null, ...change });
  }
  add(part: Part, weight = 1): void {
    const term = { ...part, weight };
    this.ask(this.back?.can.sum ? [...this.state.terms, term] : [term]);
  }

  /** Search, if the state asks another question than the one that was answered. */
  follow(scroll = 0): void {
    document.title = this.state.terms.length ? `${nameOf(this.state.terms)} · clip-retrieval` : "clip-retrieval";
    const { question } = this;
    const key = question && questionKey(question);
    if (key === this.key) return;
    this.running.abort();
    this.running = new AbortController();
    this.key = key;
    this.problem = null;
    this.waiting = null;
    this.loading = false;
    this.active = 0;
    this.clearSelection();
    const kept = key === null ? NOTHING : this.remembered.get(key);
    this.found = kept ?? { ...NOTHING, isLast: false };
    requestAnimationFrame(() => scrollTo(0, kept ? scroll : 0));
    if (!question || kept) return;
    if (this.isStale && question.terms.some(({ kind }) => kind === "id")) return;
    void this.more();
  }
  goOnStale(): void {
    this.go({}, "replace");
    if (!this.hits.length) void this.more();
  }

  /** Fetch the next page of hits. */
  async more(): Promise<void> {
    const { question, back } = this;
    if (!question || !back || this.loading || this.found.isLast || this.problem) return;
    const { signal } = this.running;
    const before = this.found;
    this.loading = true;
    const timer = setTimeout(() => (this.slow = true), SLOW_MS);
    try {
      const size = Math.min(LARGEST_PAGE, Math.max(FIRST_PAGE, before.hits.length));
      const page = await insist(
        () => back.search(question, before.hits.length, size, signal),
        signal,
        (waiting) => this.tell(waiting, signal),
      );
      signal.throwIfAborted();
      this.loading = false;
      if (before.hits.length && page.generation !== before.generation) return this.startAnew();
      if (page.generation && page.generation !== this.about?.generation) void this.refresh();
      const there = new Set(before.hits.map(({ id }) => id));
      const fresh = page.hits.filter(({ id }) => !there.has(id));
      for (const hit of fresh) this.known.set(hit.id, hit);
      // A page without new hits would be requested again and again.
      this.found = { ...page, hits: [...before.hits, ...fresh], isLast: page.isLast || !fresh.length };
      this.remember();
    } catch (error) {
      this.fail(error, signal);
      this.checkIndices(error);
    } finally {
      clearTimeout(timer);
      if (!signal.aborted) this.slow = false;
    }
  }

  retry(): void {
    this.problem = null;
    if (!this.back || !this.about) void this.begin();
    else void this.more();
  }

  private tell(waiting: Waiting | null, signal: AbortSignal): void {
    if (signal.aborted) return;
    if (this.waiting && !waiting) this.epoch++;
    this.waiting = waiting;
  }
  private fail(error: unknown, signal: AbortSignal): void {
    if (signal.aborted) return;
    this.loading = false;
    this.waiting = null;
    if (error instanceof Problem && error.kind === "key") {
      this.keyWasWrong = this.apiKey !== null;
      this.needsKey = true;
      return;
    }
    this.problem = error instanceof Problem ? error : new Problem("broken", String(error));
  }
  private startAnew(): void {
    this.remembered.clear();
    this.key = null;
    void this.refresh().then(() => this.follow());
  }
  /** Ask again which indices and builds there are; at most every few seconds. */
  async refresh(): Promise<void> {
    if (!this.config || Date.now() - this.refreshed < 3_000) return;
    this.refreshed = Date.now();
    try {
      this.back = await openBack(this.config, new AbortController().signal);
      this.forgetRows();
      this.epoch++;
    } catch {
      // the next request reports what is wrong
    }
  }
  /** Ids may be other rows now. */
  private forgetRows(): void {
    this.gone.clear();
    this.known.clear();
  }
  /** If indices may have changed, ask which there are; search again if the question has changed. */
  checkIndices(error: unknown): void {
    if (error instanceof Problem && (error.kind === "missing" || error.kind === "rebuilt")) void this.refresh().then(() => this.follow());
  }
  private remember(): void {
    if (this.key === null) return;
    this.remembered.delete(this.key);
    this.remembered.set(this.key, this.found);
    const oldest = this.remembered.keys().next().value;
    if (this.remembered.size > MOST_REMEMBERED && oldest !== undefined) this.remembered.delete(oldest);
  }

  /** Add a picture that was dropped, pasted or chosen. */
  async addPicture(file: Blob): Promise<void> {
    const { about, back } = this;
    if (!about || !back || this.adding) return;
    this.adding = true;
    const { signal } = this.running;
    try {
      const { base64, thumbnail } = await preparePicture(file);
      const part = await insist(() => back.embed(about.name, base64, signal), signal, (waiting) => this.tell(waiting, signal));
      if (part) {
        if (thumbnail) keepPicture(digest(part.vector), thumbnail);
        this.add(part);
      } else {
        const key = digest(base64);
        keepPicture(key, base64);
        this.add({ kind: "picture", key });
      }
    } catch (error) {
      this.fail(error, signal);
    } finally {
      this.adding = false;
    }
  }
  /** Return the picture of a part of the query, if there is one to show. */
  thumbnailOf(term: Term): string | null {
    if (term.kind === "vector") return keptPicture(digest(term.vector));
    if (term.kind === "url") return term.url;
    if (term.kind === "picture") {
      const kept = keptPicture(term.key);
      return kept && `data:image/jpeg;base64,${kept}`;
    }
    return null;
  }

  /** Return the part that means "more like this hit"; null if the server does not support it. */
  likeness(hit: Hit): Part | null {
    if (this.back?.can.sum) return { kind: "id", id: hit.id };
    if (hit.image) {
      const key = digest(hit.image);
      keepPicture(key, hit.image);
      return { kind: "picture", key };
    }
    const url = webAddress(hit.metadata[this.urlColumn]);
    return url ? { kind: "url", url } : null;
  }

  /** Return where a hit's picture may be, the best place first. */
  sourcesOf(hit: Hit, size: number | "original"): string[] {
    const sources: string[] = [];
    const served = this.about && this.back?.pictureUrl(this.about, hit.id, size);
    if (hit.image && size !== "original" && (size <= 256 || !served)) sources.push(`data:image/jpeg;base64,${hit.image}`);
    if (served) sources.push(served);
    const web = webAddress(hit.metadata[this.urlColumn]);
    if (web) sources.push(web);
    return sources;
  }
  /** Return the address that opens the PDF or video of a hit at its place; null if the server has none. */
  fileOf(hit: Hit): { url: string; kind: Place["kind"]; words: string } | null {
    const place = placeIn(hit.metadata.image_path);
    const url = place && this.about ? this.back?.fileUrl(this.about, hit.id) : null;
    return place && url ? { url: `${url}${place.fragment}`, kind: place.kind, words: leadTo(place) } : null;
  }
  isServed(source: string): boolean {
    return this.back !== null && source.startsWith(`${this.back.base}/`);
  }
  /** Return the bytes of a picture of the server. Throws Problem. */
  async fetchPicture(source: string, signal?: AbortSignal): Promise<Blob> {
    return (await ask(source, { key: this.apiKey, ...(signal ? { signal } : {}) })).blob();
  }

  open(hit: Hit, how: "push" | "replace" = "push"): void {
    this.known.set(hit.id, hit);
    this.go({ open: hit.id }, how);
  }
  clearSelection(): void {
    this.selected.clear();
    this.isRange = false;
  }
  toggle(id: number): void {
    if (!this.selected.delete(id)) this.selected.add(id);
  }
}

function webAddress(value: unknown): string | null {
  return typeof value === "string" && /^https?:\/\//i.test(value) ? value : null;
}

export const session = new Session();
