// Signed links: what brings no header, such as a video player, shows that whoever made the link has the key.

import { hmac } from "@noble/hashes/hmac.js";
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";

const HELD = 6 * 3600; // seconds that a link holds at least, and at most twice as long

/** Return what a link to this path, not encoded, is signed with. Links of the same hours are the same: players go on. */
export function signLink(key: string, path: string, now: number): { expires: string; signature: string } {
  const expires = String((Math.floor(now / HELD) + 2) * HELD);
  return { expires, signature: bytesToHex(hmac(sha256, utf8ToBytes(key), utf8ToBytes(`${path}\n${expires}`))) };
}
