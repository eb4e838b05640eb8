// Requests and their errors: each error is a sentence, and says whether retrying may help.

export type Kind =
  | "away" // no answer
  | "busy" // 429
  | "unready" // 503: the model is still being opened, or an answer took too long
  | "key" // 401
  | "rebuilt" // 409: ids are of another build
  | "refused" // the request is invalid
  | "missing" // 404
  | "broken"; // an error of the server
export class Problem extends Error {
  constructor(
    readonly kind: Kind,
    message: string,
    readonly retrySeconds: number | null = null,
  ) {
    super(message);
  }
  /** Trying the same again may help. */
  get passes(): boolean {
    return this.kind === "away" || this.kind === "busy" || this.kind === "unready";
  }
}

const KINDS: Record<number, Kind> = {
  401: "key", 404: "missing", 408: "unready", 409: "rebuilt", 429: "busy", 502: "away", 503: "unready", 504: "away",
};
const LONGEST_ANSWER = 90_000; // ms; after this time without an answer, a server counts as gone

export type Asked = { body?: unknown; key?: string | null; signal?: AbortSignal };

/** Return a server's answer to a GET, or to a POST if there is a body. Throws Problem, or AbortError. */
export async function ask(url: string, asked: Asked = {}): Promise<Response> {
  const timeout = AbortSignal.timeout(LONGEST_ANSWER);
  let answer: Response;
  try {
    answer = await fetch(url, {
      method: asked.body === undefined ? "GET" : "POST",
      body: asked.body === undefined ? null : JSON.stringify(asked.body), // text/plain: no preflight for other origins
      headers: asked.key ? { "X-API-Key": asked.key } : {},
      signal: asked.signal ? AbortSignal.any([asked.signal, timeout]) : timeout,
      credentials: "same-origin",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (asked.signal?.aborted) throw error;
    throw new Problem("away", timeout.aborted ? "It has not answered for 90 seconds." : nobodyAt(new URL(url).origin));
  }
  if (answer.ok) return answer;
  const wait = Number(answer.headers.get("retry-after"));
  const kind = KINDS[answer.status] ?? (answer.status < 500 ? "refused" : "broken");
  throw new Problem(kind, await readMessage(answer), wait > 0 ? Math.min(wait, 60) : null);
}

/** A browser does not tell a page whether there is no server, or one that does not allow the page's origin. */
function nobodyAt(origin: string): string {
  const isForeign = typeof location !== "undefined" && location.origin !== origin;
  return `Nothing answers at ${origin}${isForeign ? `, or the server does not allow pages of ${location.origin} (--cors)` : ""}.`;
}

export async function askJson<T>(url: string, asked: Asked = {}): Promise<T> {
  const answer = await ask(url, asked);
  try {
    return (await answer.json()) as T;
  } catch (error) {
    if (asked.signal?.aborted) throw error;
    throw new Problem("broken", `There is no clip-retrieval server at ${url}: the answer is not JSON.`);
  }
}

async function readMessage(answer: Response): Promise<string> {
  try {
    const said = ((await answer.json()) as { message?: unknown }).message;
    if (typeof said === "string" && said) return said;
  } catch {
    // not JSON: a proxy's page
  }
  return `The server answers ${answer.status} ${answer.statusText}`.trim();
}

const FIRST_WAIT = 1;
const LONGEST_WAIT = 15;

/** Return how many seconds to wait before the next try; the tries of many pages are spread. */
export function waitSeconds(problem: Problem, tries: number): number {
  const grown = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** Math.min(tries, 6));
  return Math.max(problem.retrySeconds ?? 0, grown) * (1 + Math.random() / 4);
}

export type Waiting = { problem: Problem; until: number; now: () => void };

/** Do something until it succeeds, or fails in a way that retrying cannot fix. */
export async function insist<T>(
  work: () => Promise<T>,
  signal: AbortSignal,
  tell: (waiting: Waiting | null) => void,
): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      const done = await work();
      tell(null);
      return done;
    } catch (error) {
      if (!(error instanceof Problem) || !error.passes || signal.aborted) throw error;
      const wait = waitSeconds(error, tries) * 1000;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, wait);
        const now = () => {
          clearTimeout(timer);
          resolve();
        };
        signal.addEventListener("abort", now, { once: true });
        tell({ problem: error, until: Date.now() + wait, now });
      });
      signal.throwIfAborted();
    }
  }
}
