// A Passerelle on a free loopback port, with the bundled demo model unless told otherwise, and with nothing of the
// caller's own configuration.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

// What a tiny encoder's reference implementation makes of its texts: [{text, embedding}].
export function referenceTexts(encoder) {
  const texts = JSON.parse(readFileSync(join(encoder, "texts.json"), "utf8"));
  const plain = texts.filter(({ prompt_name, text }) => prompt_name === null && !text.includes("[SEP]"));
  assert.ok(plain.length > 1, "there are texts to compare");
  return plain;
}

export function assertClose(found, wanted) {
  assert.equal(found.length, wanted.length);
  found.forEach((value, at) => assert.ok(Math.abs(value - wanted[at]) <= 2e-4 + 1e-3 * Math.abs(wanted[at])));
}

export async function serve(binary, ...further) {
  const folder = mkdtempSync(join(tmpdir(), "passerelle-"));
  const env = { PATH: process.env.PATH, HOME: folder, XDG_DATA_HOME: folder, HF_HUB_OFFLINE: "1" };
  const options = ["serve", "--listen", "127.0.0.1:0", "--data-dir", folder, "--log-level", "warn", ...further];
  const child = spawn(binary, options, { env, stdio: ["ignore", "pipe", "inherit"] });
  const ended = once(child, "exit");
  const [line] = await once(createInterface({ input: child.stdout }), "line");
  if (!line.startsWith("ready: http://")) throw new Error(`no ready line, but ${line}`);
  return {
    url: line.slice("ready: ".length),
    async stop() {
      child.kill("SIGTERM");
      const [code] = await ended;
      rmSync(folder, { recursive: true, force: true });
      if (code !== 0) throw new Error(`the server ended with ${code} after SIGTERM`);
    },
  };
}
