import { expect, test } from "vitest";
import { parseTyped, readTerm, showWeight, stepWeight, writeTerm, type Term } from "../src/front/terms";

const text = (words: string, weight = 1): Term => ({ kind: "text", text: words, weight });

test.each<[string, Term[]]>([
  ["dog", [text("dog")]],
  ["  a dog  ", [text("a dog")]],
  ["", []],
  ["black-and-white t-shirt", [text("black-and-white t-shirt")]],
  ["C++", [text("C++")]],
  ["4*4 truck", [text("4*4 truck")]],
  ["beach - people", [text("beach"), text("people", -1)]],
  ["beach + 0.5*sunset - 2 * people", [text("beach"), text("sunset", 0.5), text("people", -2)]],
  ["- people + beach", [text("people", -1), text("beach")]],
  ["'salt + pepper' - pizza", [text("salt + pepper"), text("pizza", -1)]],
  ["'s morgens - fog", [text("'s morgens"), text("fog", -1)]],
  ['"quoted"', [text("quoted")]],
  ["beach - ", [text("beach -")]],
  ["https://a.org/b-c.jpg", [{ kind: "url", url: "https://a.org/b-c.jpg", weight: 1 }]],
  ["beach - 0.5*HTTP://a.org/b", [text("beach"), { kind: "url", url: "HTTP://a.org/b", weight: -0.5 }]],
  ["'https://a.org' + https: + https://a b", [text("https://a.org"), text("https:"), text("https://a b")]],
])("%j is typed", (typed, terms) => expect(parseTyped(typed)).toEqual(terms));

test.each<Term>([
  text("dog"),
  text("dog", -0.5),
  text("id:17"),
  text("text:x"),
  text("2*x"),
  text("url:http://a"),
  text("a & b = c + d? # %20 é 🐕"),
  text("line\nbreak"),
  { kind: "id", id: 17, weight: 1 },
  { kind: "id", id: 0, weight: -1 },
  { kind: "vector", vector: "AZaz09_-", weight: 0.5 },
  { kind: "url", url: "https://example.org/a.jpg?b=1*2", weight: 1 },
  { kind: "picture", key: "abc", weight: 1 },
])("%j is the same after it was an address's word", (term) => expect(readTerm(writeTerm(term))).toEqual(term));

test.each(["", "0*dog", "id:", "id:x", "id:-1", "id:99999999999999999999", "vec:", "vec:<b>", "url:javascript:alert(1)", "pic:../x"])(
  "%j means nothing",
  (word) => expect(readTerm(word)).toBeNull(),
);

test("less and more step over 0 and end at 3", () => {
  expect([1, 0.5, -0.5, -3].map((weight) => stepWeight(weight, -0.5))).toEqual([0.5, -0.5, -1, -3]);
  expect([-0.5, 0.5, 3].map((weight) => stepWeight(weight, 0.5))).toEqual([0.5, 1, 3]);
  expect([1, -1, 0.5, -2].map(showWeight)).toEqual(["", "−", "0.5×", "−2×"]);
});
