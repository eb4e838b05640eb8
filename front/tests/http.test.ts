import { createServer, type Server } from "node:http";
import { afterEach, expect, test } from "vitest";
import { ask, askJson, insist, Problem, waitSeconds, type Waiting } from "../src/front/api/http";

let server: Server;
afterEach(() => server?.close());

async function serve(status: number, body: string, headers: Record<string, string> = {}): Promise<string> {
  server = createServer((_, answer) => answer.writeHead(status, headers).end(body));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `http://127.0.0.1:${(server.address() as { port: number }).port}/`;
}
const fault = (work: Promise<unknown>): Promise<Problem> => work.then(() => Promise.reject(), (error) => error);

test.each([
  [400, '{"message": "where: no"}', "refused", "where: no", false],
  [401, '{"message": "a key"}', "key", "a key", false],
  [404, '{"message": "no"}', "missing", "no", false],
  [409, '{"message": "anew"}', "rebuilt", "anew", false],
  [413, '{"message": "large"}', "refused", "large", false],
  [429, '{"message": "full"}', "busy", "full", true],
  [503, '{"message": "model"}', "unready", "model", true],
  [500, "<h1>oh</h1>", "broken", "The server answers 500 Internal Server Error", false],
  [502, "<h1>proxy</h1>", "away", "The server answers 502 Bad Gateway", true],
] as const)("status %i with %s", async (status, body, kind, message, passes) => {
  const problem = await fault(ask(await serve(status, body, { "retry-after": "7" })));
  expect([problem.kind, problem.message, problem.passes, problem.retrySeconds]).toEqual([kind, message, passes, 7]);
});

test("an answer that is no JSON, and a server that is not there", async () => {
  const url = await serve(200, "<h1>hello</h1>");
  expect((await fault(askJson(url))).kind).toBe("broken");
  server.close();
  server.closeAllConnections();
  expect((await fault(askJson(url))).kind).toBe("away");
});

test("waits grow, end somewhere, and are at least what the server says", () => {
  const away = new Problem("away", "");
  for (const [tries, least, most] of [[0, 1, 1.25], [2, 4, 5], [50, 15, 18.75]] as const) {
    expect(waitSeconds(away, tries)).toBeGreaterThanOrEqual(least);
    expect(waitSeconds(away, tries)).toBeLessThanOrEqual(most);
  }
  expect(waitSeconds(new Problem("busy", "", 30), 0)).toBeGreaterThanOrEqual(30);
});

test("what passes is tried until it succeeds; what does not is thrown", async () => {
  const told: (Waiting | null)[] = [];
  let tries = 0;
  const work = async () => (++tries < 3 ? Promise.reject(new Problem("busy", "full", 50)) : "done");
  const tell = (waiting: Waiting | null) => {
    told.push(waiting);
    waiting?.now(); // as the button does
  };
  expect(await insist(work, new AbortController().signal, tell)).toBe("done");
  expect(told.map((waiting) => waiting?.problem.kind ?? null)).toEqual(["busy", "busy", null]);
  await expect(insist(() => Promise.reject(new Problem("refused", "no")), new AbortController().signal, tell)).rejects.toThrow("no");
});

test("nobody waits any more once it is given up", async () => {
  const stop = new AbortController();
  const waiting = insist(() => Promise.reject(new Problem("away", "gone", 60)), stop.signal, () => stop.abort());
  await expect(waiting).rejects.toThrow();
});
