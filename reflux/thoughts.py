"""The growing tree in words: what a stream shows as reasoning while an answer is worked on."""

from graphs.events import Event


def thought(event: Event) -> str:
    """What an event adds, as whole lines; empty for what readers need not see."""
    path = event["path"]
    margin = "  " * (path.count("/") - 1)
    match event["event"]:
        case "asked":
            to = f" [{event['to']}]" if event["to"] else ""
            return f"{margin}→{to} {_line(event['question'])}\n"
        case "tool":
            return f"{margin}{event['tool']}({_line(event['arguments'])})\n"
        case "retry":
            why = f": {_line(event['error'])}" if event["error"] else ""
            return f"{margin}the check {event['rule']} failed{why}; again\n"
        case "step" if path and event["step"]["kind"] == "answer":
            return f"{margin}← {_line(event['step']['text'])}\n"
        case "answered" if path:
            asked = _line(event.get("question", ""))
            said = event["answer"] if event["status"] == "ok" else None
            what = _line(said) if said is not None else f"({event['error'] or event['status']})"
            return f"{margin}← {asked}: {what}\n" if asked else f"{margin}← {what}\n"
        case _:
            return ""


def _line(text: str) -> str:
    return " ".join(text.split())
