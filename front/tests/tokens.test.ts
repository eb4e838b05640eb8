import { expect, test } from "vitest";
import css from "../src/shared/tokens.css?raw";

test("the two ways to darkness name the same colors", () => {
  const bodies = [...css.matchAll(/color-scheme: dark;([^}]*)\}/g)].map((match) => match[1]!.replace(/\s+/g, " "));
  expect(bodies).toHaveLength(2);
  expect(bodies[0]).toBe(bodies[1]);
});
