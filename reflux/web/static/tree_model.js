// A tree as it grows: nodes by path, from typed events or from the recorded tree.

const node = (path, question = "") => ({
  path, question, answer: null, status: "running", error: null, by: "", votes: 0, calls: 0,
  tokens: 0, seconds: 0, money: null, tools: 0, note: "", verdicts: [], children: [],
});

const order = (path) => path.split("/").slice(1).map((part) => part.split(".").map(Number));

function before(first, second) {
  const a = order(first).flat(), b = order(second).flat();
  for (let at = 0; at < Math.min(a.length, b.length); at++) if (a[at] !== b[at]) return a[at] - b[at];
  return a.length - b.length;
}

export class TreeModel {
  constructor(question) {
    this.nodes = new Map([["", node("", question)]]);
    this.left = {};
    this.writing = ""; // How the task writes, where that is not as people do.
  }

  static from(json) {
    const model = new TreeModel(json.question);
    model.writing = json.writing || "";
    const add = (told) => {
      const { children, answered_by: by, ...rest } = told;
      const kept = Object.assign(model.nodes.get(told.path) || node(told.path), rest, { by, children: children.map((c) => c.path) });
      model.nodes.set(told.path, kept);
      children.forEach(add);
    };
    add(json);
    return model;
  }

  get root() { return this.nodes.get(""); }

  // A node by its path, made where it is not there yet; and whether its parent has changed.
  at(path) {
    const known = this.nodes.get(path);
    if (known) return [known, []];
    const made = node(path);
    this.nodes.set(path, made);
    const [parent, changed] = this.at(path.slice(0, path.lastIndexOf("/")));
    let place = parent.children.length;
    while (place > 0 && before(path, parent.children[place - 1]) < 0) place--;
    parent.children.splice(place, 0, path);
    return [made, [...changed, parent.path]];
  }

  // Hears an event; returns the paths of the nodes that look different now.
  hear(event) {
    const [here, changed] = this.at(event.path);
    switch (event.event) {
      case "asked":
        here.question = event.question;
        break;
      case "step":
        if (event.step.kind === "answer") { here.answer = event.step.text; here.by = "H"; }
        if (event.step.note) here.note = event.step.note;
        break;
      case "called":
        here.calls += 1;
        here.tokens += event.tokens;
        here.seconds += event.seconds;
        if (here.by !== "H") here.by = event.model;
        this.left = event.left || {};
        break;
      case "tool":
        here.tools += 1;
        break;
      case "retry":
        here.note = `tried again: ${event.error || event.rule}`;
        break;
      case "link":
        here.note = `link ${event.number + 1}: ${event.answer}`;
        break;
      case "answered":
        here.answer = event.answer;
        here.status = event.status;
        here.error = event.error;
        here.question ||= event.question || "";
        here.votes += event.votes || 0;
        break;
    }
    return [event.path, ...changed];
  }

  totals() {
    let calls = 0, tokens = 0, money = null;
    for (const each of this.nodes.values()) {
      calls += each.calls;
      tokens += each.tokens;
      if (each.money) money = (money || 0) + each.money;
    }
    return { nodes: this.nodes.size, calls, tokens, money };
  }
}
