// A page of a server in a headless browser, and what it must never do.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

import { serve } from "./server.mjs";

const ARGUMENTS = [
  "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

// Serves, opens a page for a French reader, hands both to `visit`, and holds the page to asking no other place and
// complaining of nothing.
export async function withPage(served, { executablePath = "/usr/bin/chromium", viewport }, visit) {
  const server = await serve(...served);
  const profile = mkdtempSync(join(tmpdir(), "passerelle-page-"));
  const browser = await chromium.launchPersistentContext(profile, {
    executablePath, headless: true, args: ARGUMENTS, locale: "fr-FR", viewport,
  });
  try {
    const page = await browser.newPage();
    const elsewhere = [];
    const complaints = [];
    page.on("request", (request) => { if (!request.url().startsWith(server.url)) elsewhere.push(request.url()); });
    page.on("pageerror", (error) => complaints.push(error.message));
    page.on("console", (message) => { if (message.type() === "error") complaints.push(message.text()); });
    await visit(page, server.url);
    assert.deepEqual(complaints, []);
    assert.deepEqual(elsewhere, [], "nothing is asked of any other place");
  } finally {
    await browser.close();
    await server.stop();
    rmSync(profile, { recursive: true, force: true });
  }
}
