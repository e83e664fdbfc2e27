// Creates elements. Text is inserted as text nodes only, so the output of a model is never markup.

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

export function toast(text, bad = false) {
  const note = el("div", { class: bad ? "toast bad" : "toast" }, text);
  document.getElementById("toasts").append(note);
  setTimeout(() => note.remove(), bad ? 8000 : 4000);
}

// Runs an action of the user and shows its error.
export async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message, true);
    return undefined;
  }
}

// Asks for confirmation; resolves to true or false.
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

// An empty state; `text` in backticks is code.
export function empty(title, text, ...actions) {
  const parts = text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));
  return el("div", { class: "empty" }, el("h2", {}, title), text ? el("p", {}, parts) : "", actions);
}

export const number = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en"));
export const seconds = (value) => (value < 10 ? `${value.toFixed(1)} s` : value < 120 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`);
export const when = (created) => new Date(created * 1000).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
