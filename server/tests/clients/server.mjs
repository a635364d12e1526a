// A Passerelle with the bundled demo model on a free loopback port, with nothing of the caller's own configuration.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

export async function serve(binary) {
  const folder = mkdtempSync(join(tmpdir(), "passerelle-"));
  const env = { PATH: process.env.PATH, HOME: folder, XDG_DATA_HOME: folder, HF_HUB_OFFLINE: "1" };
  const options = ["serve", "--listen", "127.0.0.1:0", "--data-dir", folder, "--log-level", "warn"];
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
