import { expect, test } from "vitest";
import { nameOf, questionKey, readState, START, writeState, type State } from "../src/front/state";

const full: State = {
  terms: [
    { kind: "text", text: "a dog & cat", weight: 1 },
    { kind: "id", id: 17, weight: -0.5 },
    { kind: "vector", vector: "AAEC", weight: 1 },
  ],
  index: "my photos",
  modality: "text",
  where: "width >= 512 and license = 'cc0'",
  unique: true,
  varied: true,
  sure: true,
  open: 3,
  back: "https://example.org/back",
  generation: "f0b5",
};

test("an address says the whole state", () => {
  expect(readState(writeState(full))).toEqual(full);
  expect(readState(writeState(START))).toEqual(START);
  expect(writeState(START)).toBe("");
});

test("a simple search has a simple address", () => {
  expect(writeState({ ...START, terms: [{ kind: "text", text: "red heart", weight: 1 }] })).toBe("?q=red+heart");
  expect(writeState({ ...START, unique: true })).toBe("?unique");
});

test("the build is named where ids are, and only there", () => {
  expect(writeState({ ...START, generation: "b" })).toBe("");
  expect(writeState({ ...START, generation: "b", open: 1 })).toBe("?open=1&build=b");
});

test("what makes no sense in an address is left out", () => {
  const state = readState("?q=0*x&q=dog&in=video&open=-1&back=javascript:alert(1)&open=x&nonsense=1");
  expect(state).toEqual({ ...START, terms: [{ kind: "text", text: "dog", weight: 1 }] });
});

test("links of clip-retrieval 2's front work", () => {
  const state = readState("?back=http%3A%2F%2Flocalhost%3A1234%2F&index=laion&useMclip=false&query=a+cat");
  expect(state).toEqual({
    ...START, back: "http://localhost:1234", index: "laion", terms: [{ kind: "text", text: "a cat", weight: 1 }],
  });
  expect(readState("?imageUrl=https%3A%2F%2Fa.b%2Fc.jpg").terms).toEqual([{ kind: "url", url: "https://a.b/c.jpg", weight: 1 }]);
  expect(readState("?imageUrl=data:text/html,x").terms).toEqual([]);
});

test("the panel and spaces around a condition make no other question", () => {
  const question = { ...full, index: "a" };
  expect(questionKey({ ...question, open: 9 } as typeof question)).toBe(questionKey(question));
  expect(questionKey({ ...question, where: ` ${full.where} ` })).toBe(questionKey(question));
  for (const other of [{ index: "b" }, { unique: false }, { modality: "image" as const }, { terms: [] }, { where: "" }]) {
    expect(questionKey({ ...question, ...other })).not.toBe(questionKey(question));
  }
});

test("a search has a name for people", () => {
  expect(nameOf(full.terms)).toBe("a dog & cat − picture 17 + a picture");
});
