// The page of a running Passerelle in a headless browser: it lists the model, sends a message, shows the
// answer and says what the key's limits leave.
//
//     npm install && node home_page.mjs PATH/TO/passerelle [PATH/TO/chromium]

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { withPage } from "./browser.mjs";

const [binary, executablePath] = process.argv.slice(2);

const folder = mkdtempSync(join(tmpdir(), "passerelle-limits-"));
const limited = join(folder, "passerelle.toml");
writeFileSync(limited, "[limits]\nconcurrent_requests = 3\n");

await withPage([binary, "--config", limited], { executablePath }, async (page, url) => {
  await page.goto(url);
  await page.waitForFunction(() => document.getElementById("model").value === "demo");
  assert.equal(await page.getAttribute("html", "lang"), "fr");
  await page.fill("#message", "What is 12 + 7?");
  await page.click("#send");
  await page.waitForFunction(() => document.getElementById("usage").textContent !== "");
  assert.match(await page.textContent(".turn.assistant"), /19/);

  assert.match(await page.textContent("#limits"), /Requêtes à la fois3 sur 3/);

  await page.click("#language");
  assert.match(await page.textContent("#limits"), /Requests at once3 of 3/);
  assert.equal(await page.getAttribute("html", "lang"), "en");
  assert.match(await page.textContent("#snippet"), new RegExp(url.replaceAll(".", "\\.")));

  await page.goto(`${url}/docs`);
  await page.click("summary:has-text('/v1/chat/completions')");
  await page.waitForSelector("td:has-text('temperature')");
});
rmSync(folder, { recursive: true });
console.log("the page answers");
