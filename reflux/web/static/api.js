// Requests to the server of this page, and to no other.

import { el } from "./dom.js";

let keyDialog = null;

export class Failed extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// The key stays in this tab and is sent in a header, so no other page can use it.
const key = () => sessionStorage.getItem("reflux-key") || "";

export async function send(path, options = {}) {
  for (;;) {
    const headers = { ...(options.headers || {}) };
    const current = key();
    if (current) headers.authorization = `Bearer ${current}`;
    let body;
    if (options.body !== undefined) {
      headers["content-type"] = "application/json";
      body = JSON.stringify(options.body);
    }
    const method = options.method || (body === undefined ? "GET" : "POST");
    let response;
    try {
      // Relative to the page, which a proxy may show below its own path.
      response = await fetch(`.${path}`, { method, headers, body, signal: options.signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failed("The server does not answer. Is `reflux serve` still running?", 0);
    }
    if (response.status !== 401) {
      if (!response.ok) throw await failure(response);
      return response;
    }
    if (key() === current) await askForKey(current !== "");
  }
}

export async function json(path, options) {
  return (await send(path, options)).json();
}

async function failure(response) {
  let message = `The server answered ${response.status}.`;
  try {
    const body = await response.json();
    message = body.error?.message || body.detail?.[0]?.msg || message;
  } catch { /* The body is not JSON. */ }
  return new Failed(message, response.status);
}

// Yields the server-sent events of a response as [event, data, id].
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      let event = "message", data = "", id = null;
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) event = line.slice(7);
        else if (line.startsWith("data: ")) data += line.slice(6);
        else if (line.startsWith("id: ")) id = Number(line.slice(4));
      }
      if (data) yield [event, data, id];
    }
  }
}

// Yields the events of a growing tree until its end; reconnects after the last event received.
export async function* treeEvents(trajectory, signal) {
  let last = 0;
  for (let retries = 0; retries < 8; retries++) {
    try {
      const response = await send(`/api/trajectories/${encodeURIComponent(trajectory)}/events?after=${last}`, { signal });
      for await (const [event, data, id] of eventsOf(response)) {
        if (event === "end") return;
        last = id ?? last;
        retries = 0;
        yield JSON.parse(data);
      }
    } catch (error) {
      if (error.name === "AbortError" || error.status) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

function askForKey(wrong) {
  keyDialog ??= new Promise((resolve) => {
    const input = el("input", { type: "password", required: true, autocomplete: "current-password", "aria-label": "API key", autofocus: true });
    const dialog = el("dialog", { class: "dialog", onclose: () => keyDialog && dialog.showModal() },
      el("form", {
        onsubmit: (event) => {
          event.preventDefault();
          sessionStorage.setItem("reflux-key", input.value.trim());
          keyDialog = null; // First, because closing the dialog by Escape opens it again.
          dialog.close();
          dialog.remove();
          resolve();
        },
      },
      el("h2", {}, "This server needs a key"),
      el("p", { class: wrong ? "bad" : "dim" }, wrong ? "Wrong key. Try again." : "Enter the REFLUX_API_KEY of the server. It stays in this tab."),
      input,
      el("div", { class: "row end" }, el("button", { class: "primary" }, "Open"))));
    document.body.append(dialog);
    dialog.showModal();
  });
  return keyDialog;
}
