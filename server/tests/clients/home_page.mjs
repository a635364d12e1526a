// The page of a running Passerelle in a headless browser: it lists the model, sends a message and shows the answer.
//
//     npm install && node home_page.mjs PATH/TO/passerelle [PATH/TO/chromium]

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

import { serve } from "./server.mjs";

const [binary, browserPath = "/usr/bin/chromium"] = process.argv.slice(2);
const ARGUMENTS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

const profile = mkdtempSync(join(tmpdir(), "passerelle-page-"));
const server = await serve(binary);
const browser = await chromium.launchPersistentContext(profile, {
  executablePath: browserPath, headless: true, args: ARGUMENTS, locale: "fr-FR",
});
try {
  const page = await browser.newPage();
  const elsewhere = [];
  const complaints = [];
  page.on("request", (request) => { if (!request.url().startsWith(server.url)) elsewhere.push(request.url()); });
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("console", (message) => { if (message.type() === "error") complaints.push(message.text()); });

  await page.goto(server.url);
  await page.waitForFunction(() => document.getElementById("model").value === "demo");
  assert.equal(await page.getAttribute("html", "lang"), "fr");
  await page.fill("#message", "What is 12 + 7?");
  await page.click("#send");
  await page.waitForFunction(() => document.getElementById("usage").textContent !== "");
  assert.match(await page.textContent(".turn.assistant"), /19/);

  await page.click("#language");
  assert.equal(await page.getAttribute("html", "lang"), "en");
  assert.match(await page.textContent("#snippet"), new RegExp(server.url.replaceAll(".", "\\.")));

  await page.goto(`${server.url}/docs`);
  await page.click("summary:has-text('/v1/chat/completions')");
  await page.waitForSelector("td:has-text('temperature')");

  assert.deepEqual(complaints, []);
  assert.deepEqual(elsewhere, [], "nothing is asked of any other place");
  console.log("the page answers");
} finally {
  await browser.close();
  await server.stop();
  rmSync(profile, { recursive: true, force: true });
}
