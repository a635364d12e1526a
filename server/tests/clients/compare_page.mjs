// The page that compares checkpoints, in a headless browser: it lists them, asks two with one seed, and shows where they
// differ. With a file's name it also keeps a picture.
//
//     npm install && node compare_page.mjs PATH/TO/passerelle PATH/TO/models/demo [PATH/TO/chromium] [PICTURE.png]

import assert from "node:assert/strict";
import { join } from "node:path";

import { withPage } from "./browser.mjs";

const [binary, demo, executablePath, picture] = process.argv.slice(2);
const models = ["early", "middle", "final"].flatMap((name) => ["--model", `${name}=${join(demo, name)}`]);

await withPage([binary, ...models], { executablePath, viewport: { width: 1200, height: 1100 } }, async (page, url) => {
  await page.goto(`${url}/compare`);
  await page.waitForSelector("#models input[value=middle]");
  assert.equal(await page.getAttribute("html", "lang"), "fr");
  for (const box of await page.$$("#models input:checked")) await box.uncheck();
  for (const name of ["final", "middle", "early"]) await page.check(`#models input[value=${name}]`);
  await page.fill("#prompt", "What is 12 + 7?");
  await page.fill("#temperature", "0.7");
  assert.match(await page.textContent("#temperature-value"), /0,7/);
  await page.fill("#seed", "7");
  const asked = page.waitForRequest((request) => request.url().endsWith("/v1/compare"));
  await page.click("#send");
  const { models: named, seed, temperature } = (await asked).postDataJSON();
  assert.deepEqual([named, seed, temperature], [["final", "middle", "early"], 7, 0.7]);
  await page.waitForSelector("#differences:not([hidden]) .token");
  assert.equal(await page.locator(".answer").count(), 3);
  assert.match(await page.textContent(".answer"), /19/);
  assert.ok(await page.locator("#heat .level5, #heat .level4").count() > 0, "an early checkpoint differs");
  await page.hover("#heat .token:nth-child(9)");
  assert.match(await page.textContent("#detail"), /KL/);
  const first = await page.textContent("#heat");
  await page.click("#pairs button:nth-child(2)");
  assert.equal(await page.textContent("#heat"), first, "one text, another pair");
  await page.click("#language");
  assert.equal(await page.getAttribute("html", "lang"), "en");
  if (picture) await page.screenshot({ path: picture, fullPage: true });
});
console.log("the page compares");
