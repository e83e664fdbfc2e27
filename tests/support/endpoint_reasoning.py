"""Behaviors of endpoints: the model's reasoning, wherever a server puts it."""

from collections.abc import Iterator
from typing import Any

from tests.support.endpoint_says import ANSWER, THOUGHT, Behavior, says


def reasoning() -> Iterator[Behavior]:
    """The model's reasoning, wherever a server puts it."""
    texts = {
        "think block": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
        "think block without its opening tag": f"{THOUGHT}\n</think>\n\n{ANSWER}",
        "thinking block": f"<thinking>{THOUGHT}</thinking>{ANSWER}",
        "thought block": f"<thought>{THOUGHT}</thought>{ANSWER}",
        "reasoning block": f"<reasoning>{THOUGHT}</reasoning>{ANSWER}",
        "seed think block": f"<seed:think>{THOUGHT}</seed:think>{ANSWER}",
        "upper-case block": f"<THINK>{THOUGHT}</THINK>{ANSWER}",
        "Mistral's block": f"[THINK]{THOUGHT}[/THINK]{ANSWER}",
        "Kimi's block": f"◁think▷{THOUGHT}◁/think▷{ANSWER}",
        "Cohere's block": f"<|START_THINKING|>{THOUGHT}<|END_THINKING|>"
        f"<|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>",
        "Gemma's channel": f"<|channel>thought\n{THOUGHT}<channel|>{ANSWER}",
        "harmony channels": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant"
        f"<|channel|>final<|message|>{ANSWER}<|return|>",
        "harmony with a schema": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant"
        f"<|channel|>final <|constrain|>JSON<|message|>{ANSWER}",
        "harmony without markers": f"analysis{THOUGHT}assistantfinal{ANSWER}",
        "analysis block": f"<analysis>{THOUGHT}</analysis>{ANSWER}",
        "MedGemma's block": f"<unused94>thought\n{THOUGHT}<unused95>{ANSWER}",
        "answer in tags": f"<think>{THOUGHT}</think>\n<answer>{ANSWER}</answer>",
        "answer in tags on lines of their own": f"<think>{THOUGHT}</think>\n"
        f"<answer>\n{ANSWER}\n</answer>\n",
        "a block that begins behind the answer": f"<think>{THOUGHT}</think>{ANSWER}\n<think>",
        "two blocks": f"<think>{THOUGHT}</think>\n<think></think>{ANSWER}",
    }
    for name, text in texts.items():
        yield Behavior(name, "reasons within the content", says(text), reasoning=THOUGHT)
    yield Behavior(
        "empty think block", "is told not to think", says(f"<think>\n\n</think>\n\n{ANSWER}")
    )
    for name in ("reasoning_content", "reasoning"):
        respond = says(**{name: THOUGHT})
        yield Behavior(f"field {name}", "has a field for reasoning", respond, reasoning=THOUGHT)
    objects: dict[str, Any] = {
        "reasoning as an object": {"reasoning": {"content": THOUGHT}},
        "reasoning_details": {
            "reasoning_details": [{"type": "reasoning.text", "text": THOUGHT, "index": 0}]
        },
        "summary in reasoning_details": {
            "reasoning_details": [{"type": "reasoning.summary", "summary": THOUGHT}]
        },
    }
    for name, fields in objects.items():
        yield Behavior(name, "gives reasoning a structure", says(**fields), reasoning=THOUGHT)
    parts: dict[str, Any] = {
        "thinking part": {"type": "thinking", "thinking": THOUGHT},
        "nested thinking part": {
            "type": "thinking",
            "thinking": [{"type": "text", "text": THOUGHT}],
        },
        "reasoning part": {"type": "reasoning", "text": THOUGHT},
        "summary part": {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": THOUGHT}],
        },
    }
    for name, part in parts.items():
        content = [part, {"type": "text", "text": ANSWER}]
        yield Behavior(name, "sends content as parts", says(content), reasoning=THOUGHT)
    cut = "the token limit cut the reply before its answer began"
    yield Behavior(
        "unclosed block",
        "is cut while it thinks",
        says(f"<think>{THOUGHT}", "length"),
        text="",
        reasoning=THOUGHT,
        finish="length",
        notes=cut,
    )
    yield Behavior(
        "unclosed block, finish stop",
        "ends within its reasoning",
        says(f"<think>{THOUGHT}"),
        text="",
        reasoning=THOUGHT,
        finish="length",
        notes=cut,
    )
    yield Behavior(
        "cut in reasoning_content",
        "is cut while it thinks",
        says("", "length", reasoning_content=THOUGHT),
        text="",
        reasoning=THOUGHT,
        finish="length",
        notes=cut,
    )
    quoted = "Models wrap thoughts in `<think>` and `</think>`; then comes the answer."
    yield Behavior("quoted tags", "explains the tags", says(quoted), text=quoted)
    code = "Parse it so:\n```python\ntext.split('</think>')\n```"
    yield Behavior("tag in code", "writes code about a tag", says(code), text=code)
    html = "<b>Lima</b> is <i>it</i>"
    yield Behavior("HTML answer", "answers in HTML", says(html), text=html)
