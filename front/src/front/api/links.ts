// Signed links, for requests without headers, such as a video player's: the signature shows that its maker has the key.

import { hmac } from "@noble/hashes/hmac.js";
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";

const HELD = 6 * 3600; // seconds that a link is valid at least; at most twice as long

/** Return the signature of a link to this path, not encoded. Links of the same hours are equal, so players go on. */
export function signLink(key: string, path: string, now: number): { expires: string; signature: string } {
  const expires = String((Math.floor(now / HELD) + 2) * HELD);
  return { expires, signature: bytesToHex(hmac(sha256, utf8ToBytes(key), utf8ToBytes(`${path}\n${expires}`))) };
}
