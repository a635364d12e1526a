// The page that compares checkpoints, in a headless browser: it lists them, asks several with one seed, and shows where they
// differ, and by which digests they are known. With a file's name it also keeps a picture.
//
//     npm install && node compare_page.mjs PATH/TO/passerelle PATH/TO/models/demo [PATH/TO/chromium] [PICTURE.png]

import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { withPage } from "./browser.mjs";

const [binary, demo, executablePath, picture] = process.argv.slice(2);
const models = ["early", "middle", "final"].flatMap((name) => ["--model", `${name}=${join(demo, name)}`]);

// As a run's checkpoints are before they are taught to chat.
function writeWithoutTemplate(folder) {
  cpSync(join(demo, "early"), folder, { recursive: true });
  const file = join(folder, "tokenizer_config.json");
  const { chat_template, ...rest } = JSON.parse(readFileSync(file, "utf8"));
  assert.ok(chat_template);
  writeFileSync(file, JSON.stringify(rest));
}

const folder = mkdtempSync(join(tmpdir(), "passerelle-base-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
writeWithoutTemplate(folder);
models.push("--model", `base=${folder}`);

await withPage([binary, ...models], { executablePath, viewport: { width: 1200, height: 1100 } }, async (page, url) => {
  await page.goto(`${url}/compare`);
  await page.waitForSelector("#models input[value=middle]");
  assert.equal(await page.getAttribute("html", "lang"), "fr");
  for (const box of await page.$$("#models input:checked")) await box.uncheck();
  for (const name of ["final", "middle", "early"]) await page.check(`#models input[value=${name}]`);
  await page.fill("#prompt", "What is 12 + 7?");
  for (const [id, value] of [["temperature", "0.7"], ["top_p", "0.9"], ["max_tokens", "40"], ["seed", "7"]]) {
    await page.fill(`#${id}`, value);
  }
  assert.match(await page.textContent("#temperature-value"), /0,7/);
  // Asks, and returns what was asked once the answer is there.
  const send = async () => {
    const asked = page.waitForRequest((request) => request.url().endsWith("/v1/compare"));
    await page.click("#send");
    await page.waitForSelector("#differences:not([hidden]) .token");
    return (await asked).postDataJSON();
  };
  const { models: named, seed, temperature, top_p, max_tokens, messages } = await send();
  assert.deepEqual([named, seed, temperature, top_p, max_tokens], [["final", "middle", "early"], 7, 0.7, 0.9, 40]);
  assert.equal(messages[0].content, "What is 12 + 7?");
  assert.equal(await page.locator(".answer").count(), 3);
  const digests = await page.$$eval(".answer small", (nodes) => nodes.map((node) => node.title));
  const listed = await (await fetch(`${url}/v1/models`)).json();
  assert.deepEqual(digests, named.map((name) => listed.data.find(({ id }) => id === name).digest));
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
  const said = () => page.locator(".said").allTextContents();
  const before = await said();
  assert.equal((await send()).seed, 7);
  assert.deepEqual(await said(), before, "of one seed come the same answers");
  await page.click("#draw");
  assert.notEqual(await page.inputValue("#seed"), "7");
  assert.equal(await page.isChecked("#plain"), false);
  for (const name of ["final", "middle"]) await page.uncheck(`#models input[value=${name}]`);
  await page.check("#models input[value=base]");
  assert.equal(await page.isChecked("#plain"), true, "it has no chat template");
  await page.fill("#prompt", "12 + 7 =");
  const plain = await send();
  assert.deepEqual([plain.models, plain.prompt, plain.messages], [["early", "base"], "12 + 7 =", undefined]);
  assert.equal(await page.locator(".answer").count(), 2);
});
console.log("the page compares");
