// The page of a running Passerelle in a headless browser: it lists the model, sends a message, shows the
// answer and says what the key's limits leave. Its programs are copied and run as they stand, the one in Python where a
// Python with the OpenAI SDK is named.
//
//     npm install && node home_page.mjs PATH/TO/passerelle [PATH/TO/chromium [PATH/TO/python]]

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { withPage } from "./browser.mjs";

const [binary, executablePath, python] = process.argv.slice(2);
const RUNNERS = { curl: ["bash", "snippet.sh"], Python: python && [python, "snippet.py"], TypeScript: [process.execPath, "snippet.mjs"] };

const folder = mkdtempSync(join(tmpdir(), "passerelle-limits-"));
const limited = join(folder, "passerelle.toml");
writeFileSync(limited, "[limits]\nconcurrent_requests = 3\n");

function run(program, [runner, name]) {
  // Beside this file, where the SDK is installed.
  const file = fileURLToPath(new URL(name, import.meta.url));
  writeFileSync(file, program);
  const { status, stdout, stderr } = spawnSync(runner, [file], { encoding: "utf8", timeout: 120_000 });
  rmSync(file);
  assert.equal(status, 0, stderr);
  assert.ok(stdout.trim(), `${name} says nothing`);
  return stdout;
}

async function copyAndRunPrograms(page, url) {
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"], { origin: url });
  for (const [language, runner] of Object.entries(RUNNERS)) {
    await page.click(`#languages button:has-text('${language}')`);
    const program = await page.textContent("#snippet");
    assert.ok(program.includes(`${url}/v1`), program);
    await page.click("#copy");
    await page.waitForFunction(async (wanted) => await navigator.clipboard.readText() === wanted, program);
    const said = runner && run(program, runner);
    if (language === "curl") assert.ok(JSON.parse(said).choices[0].message.content);
  }
}

// As in a page that came in clear from another machine.
async function copyWithoutClipboard(context, url) {
  const page = await context.newPage();
  await page.addInitScript(() => Object.defineProperty(navigator, "clipboard", { value: undefined }));
  await page.goto(url);
  await page.waitForFunction(() => document.getElementById("model").value === "demo");
  await page.click("#copy");
  await page.focus("#message");
  await page.keyboard.press("Control+V");
  assert.equal(await page.inputValue("#message"), await page.textContent("#snippet"));
  await page.close();
}

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
  await copyAndRunPrograms(page, url);
  await copyWithoutClipboard(page.context(), url);

  await page.goto(`${url}/docs`);
  await page.click("summary:has-text('/v1/chat/completions')");
  await page.waitForSelector("td:has-text('temperature')");
});
rmSync(folder, { recursive: true });
console.log("the page answers");
