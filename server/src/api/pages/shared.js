const BASE = new URL(".", location.href).href.replace(/\/$/, "") + "/v1";
const byId = (id) => document.getElementById(id);

function element(tag, content, className) {
  const made = document.createElement(tag);
  if (content !== undefined) made.textContent = content;
  if (className) made.className = className;
  return made;
}

function headers() {
  const key = byId("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

/** What a stream says, until it says that it is over; `broken` is what is thrown where it never does. */
async function* events(body, broken) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) throw new Error(broken);
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      if (frame === "data: [DONE]") return;
      if (frame.startsWith("data: ")) yield JSON.parse(frame.slice(6));
    }
  }
}
