// The model of a tree: nodes by path, from events or from the recorded tree.

const node = (path, question = "") => ({
  path, question, answer: null, status: "running", error: null, by: "", votes: 0, calls: 0,
  tokens: 0, seconds: 0, money: null, tools: 0, note: "", division: "", verdicts: [], children: [],
});

// The record calls the overseer H, as in the formulas.
const byline = (by) => (by === "H" ? "overseer" : by);
const attemptOf = (path) => path.slice(path.lastIndexOf("/") + 1).split(".")[0];
const order = (path) => path.split("/").slice(1).map((part) => part.split(".").map(Number));

function before(first, second) {
  const a = order(first).flat(), b = order(second).flat();
  for (let i = 0; i < Math.min(a.length, b.length); i++) if (a[i] !== b[i]) return a[i] - b[i];
  return a.length - b.length;
}

export class TreeModel {
  constructor(question) {
    this.nodes = new Map([["", node("", question)]]);
    this.left = {};
    this.writing = ""; // The notation of the task, where it differs from usual notation.
  }

  static from(json) {
    const model = new TreeModel(json.question);
    model.writing = json.writing || "";
    const add = (recorded) => {
      const { children, answered_by: by, path, ...rest } = recorded;
      const merged = Object.assign(model.nodes.get(path) || node(path), rest, { by: byline(by), children: children.map((c) => c.path) });
      model.nodes.set(path, merged);
      children.forEach(add);
    };
    add(json);
    return model;
  }

  get root() { return this.nodes.get(""); }

  // Returns the node at a path, created if missing, and the paths of the changed parents.
  ensure(path) {
    const known = this.nodes.get(path);
    if (known) return [known, []];
    const added = node(path);
    this.nodes.set(path, added);
    const [parent, changed] = this.ensure(path.slice(0, path.lastIndexOf("/")));
    let index = parent.children.length;
    while (index > 0 && before(path, parent.children[index - 1]) < 0) index--;
    parent.children.splice(index, 0, path);
    return [added, [...changed, parent.path]];
  }

  // Applies an event; returns the paths of the changed nodes.
  apply(event) {
    const [current, changed] = this.ensure(event.path);
    switch (event.event) {
      case "asked":
        current.question = event.question;
        break;
      case "step":
        if (event.step.kind === "answer") { current.answer = event.step.text; current.by = "overseer"; }
        if (event.step.note) current.note = event.step.note;
        if (event.step.subquestions?.length) current.division = `divided into ${event.step.subquestions.length}`;
        break;
      case "called":
        current.calls += 1;
        current.tokens += event.tokens;
        current.seconds += event.seconds;
        if (current.by !== "overseer") current.by = event.model;
        this.left = event.left || {};
        break;
      case "tool":
        current.tools += 1;
        break;
      case "retry":
        current.note = `retried: ${event.error || event.rule}`;
        break;
      case "weighed":
        current.note = "divided another way, to compare the answers";
        break;
      case "link":
        current.note = `link ${event.number + 1}: ${event.answer}`;
        break;
      case "answered":
        current.answer = event.answer;
        current.status = event.status;
        current.error = event.error;
        current.question ||= event.question || "";
        current.votes += event.votes || 0;
        if (event.note || !event.direct) current.note = event.note || "";
        for (let path = event.path; path; changed.push(path)) path = path.slice(0, path.lastIndexOf("/"));
        break;
    }
    return [event.path, ...changed];
  }

  // Which decomposition of its parent a node belongs to, such as "decomposition 2 of 2"; empty for the only one.
  decomposition(path) {
    if (!path) return "";
    const siblings = this.nodes.get(path.slice(0, path.lastIndexOf("/"))).children;
    const attempts = [...new Set(siblings.map(attemptOf))];
    return attempts.length > 1 ? `decomposition ${attempts.indexOf(attemptOf(path)) + 1} of ${attempts.length}` : "";
  }

  // Calls and tokens of a node and all below it.
  inAll(path) {
    const { calls, tokens, children } = this.nodes.get(path);
    return children.map((child) => this.inAll(child)).reduce((sum, each) => ({ calls: sum.calls + each.calls, tokens: sum.tokens + each.tokens }), { calls, tokens });
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
