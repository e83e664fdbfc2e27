// Speaks to the server that this page came from, and to no other.

import { el } from "./dom.js";

let asking = null;

export class Failed extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// The key stays in this tab; it is sent in a header, so no other page can make use of it.
const key = () => sessionStorage.getItem("reflux-key") || "";

export async function send(path, options = {}) {
  for (;;) {
    const headers = { ...(options.headers || {}) };
    const used = key();
    if (used) headers.authorization = `Bearer ${used}`;
    let body;
    if (options.body !== undefined) {
      headers["content-type"] = "application/json";
      body = JSON.stringify(options.body);
    }
    const method = options.method || (body === undefined ? "GET" : "POST");
    let response;
    try {
      response = await fetch(path, { method, headers, body, signal: options.signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failed("The server does not answer. Is `reflux serve` still running?", 0);
    }
    if (response.status !== 401) {
      if (!response.ok) throw await failure(response);
      return response;
    }
    if (key() === used) await askForKey(used !== "");
  }
}

export async function json(path, options) {
  return (await send(path, options)).json();
}

async function failure(response) {
  let message = `The server answered ${response.status}.`;
  try {
    const said = await response.json();
    message = said.error?.message || said.detail?.[0]?.msg || message;
  } catch { /* No JSON: the status has to do. */ }
  return new Failed(message, response.status);
}

// Server-sent events of a response, one by one, as [event, data, id].
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

// Events of a growing tree until its end; goes on after the last one where the line broke.
export async function* treeEvents(trajectory, signal) {
  let seen = 0;
  for (let tries = 0; tries < 8; tries++) {
    try {
      const response = await send(`/api/trajectories/${encodeURIComponent(trajectory)}/events?after=${seen}`, { signal });
      for await (const [event, data, id] of eventsOf(response)) {
        if (event === "end") return;
        seen = id ?? seen;
        tries = 0;
        yield JSON.parse(data);
      }
    } catch (error) {
      if (error.name === "AbortError" || error.status) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const input = el("input", { type: "password", required: true, autocomplete: "current-password", "aria-label": "API key", autofocus: true });
    const dialog = el("dialog", { class: "dialog", onclose: () => asking && dialog.showModal() },
      el("form", {
        onsubmit: (event) => {
          event.preventDefault();
          sessionStorage.setItem("reflux-key", input.value.trim());
          asking = null; // Before it closes: Escape closes it, too, and nothing goes on without the key.
          dialog.close();
          dialog.remove();
          resolve();
        },
      },
      el("h2", {}, "This server needs its key"),
      el("p", { class: wrong ? "bad" : "dim" }, wrong ? "That was not the key." : "It is the REFLUX_API_KEY that the server was started with. It stays in this tab."),
      input,
      el("div", { class: "row end" }, el("button", { class: "primary" }, "Open"))));
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}
