// Makes elements. Text only ever enters as text nodes, so what a model wrote is never markup.

export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function show(parent, ...children) {
  parent.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return parent;
}

export function toast(words, bad = false) {
  const note = el("div", { class: bad ? "toast bad" : "toast" }, words);
  document.getElementById("toasts").append(note);
  setTimeout(() => note.remove(), bad ? 8000 : 4000);
}

// Runs what a person set off, and says what went wrong.
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message, true);
    return undefined;
  }
}

// Asks a person to confirm; resolves to true, or to false when they think better of it.
export function confirmed(question, yes) {
  return new Promise((resolve) => {
    const done = (answer) => { dialog.close(); dialog.remove(); resolve(answer); };
    const dialog = el("dialog", { class: "dialog", oncancel: () => done(false) },
      el("p", {}, question),
      el("div", { class: "row end" },
        el("button", { type: "button", onclick: () => done(false) }, "Cancel"),
        el("button", { type: "button", class: "primary", autofocus: true, onclick: () => done(true) }, yes)));
    document.body.append(dialog);
    dialog.showModal();
  });
}

// What is shown where there is nothing yet; `words` in backticks are code.
export function empty(title, words) {
  const pieces = words.split("`").map((piece, at) => (at % 2 ? el("code", {}, piece) : piece));
  return el("div", { class: "empty" }, el("h2", {}, title), el("p", {}, pieces));
}

export const number = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en"));
export const seconds = (value) => (value < 10 ? `${value.toFixed(1)} s` : value < 120 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`);
export const when = (created) => new Date(created * 1000).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
