// The page of a running Passerelle in a headless browser: it lists the model, sends a message and shows the answer.
//
//     npm install && node home_page.mjs PATH/TO/passerelle [PATH/TO/chromium]

import assert from "node:assert/strict";

import { withPage } from "./browser.mjs";

const [binary, executablePath] = process.argv.slice(2);

await withPage([binary], { executablePath }, async (page, url) => {
  await page.goto(url);
  await page.waitForFunction(() => document.getElementById("model").value === "demo");
  assert.equal(await page.getAttribute("html", "lang"), "fr");
  await page.fill("#message", "What is 12 + 7?");
  await page.click("#send");
  await page.waitForFunction(() => document.getElementById("usage").textContent !== "");
  assert.match(await page.textContent(".turn.assistant"), /19/);

  await page.click("#language");
  assert.equal(await page.getAttribute("html", "lang"), "en");
  assert.match(await page.textContent("#snippet"), new RegExp(url.replaceAll(".", "\\.")));

  await page.goto(`${url}/docs`);
  await page.click("summary:has-text('/v1/chat/completions')");
  await page.waitForSelector("td:has-text('temperature')");
});
console.log("the page answers");
