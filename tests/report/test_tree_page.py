"""One tree as a page: nothing leaves it, and what a model wrote is text."""

from html.parser import HTMLParser
from typing import Any

import pytest

from reflux.agents.clients.scripted import ScriptedClient
from reflux.agents.types import ChatRequest, Completion, TokenLogprob
from reflux.graphs.ask import Origin, answer_all
from reflux.graphs.traces.review import find_item, remark
from reflux.graphs.traces.store import TraceStore
from reflux.report.tree_page import tree_page
from tests.support.amplifying import ONE_VOTE, amplified, asking, rejecting
from tests.support.overriding import override

ASKED = Origin("run<", 1, "amplified", "words", "train")
Q = ASKED.question_id("root")
EVIL = "<script>alert(1)</script><img src=x onerror=y>\"'&\x1b[2J</details></style>"


class Parsed(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.open += tag == "details"

    def handle_endtag(self, tag: str) -> None:
        self.open -= tag == "details"

    def handle_data(self, data: str) -> None:
        self.text += data


async def asked(store: TraceStore, reply: Any, **more: Any) -> Any:
    client = ScriptedClient(reply)
    system = amplified(store, client, asking("x", "y"), votes=ONE_VOTE, **more)
    await answer_all(system, ASKED, ["root"])
    return system.context


def shaded(request: ChatRequest) -> Completion:
    tokens = (TokenLogprob("su", 0.0), TokenLogprob("re<", -0.01), TokenLogprob("?", -3.0))
    return Completion("sure<?", 10, 3, 0.5, logprobs=tokens)


async def test_what_a_model_wrote_is_shown_as_text(store: TraceStore) -> None:
    await asked(store, lambda request: EVIL)
    await remark(store, find_item(store, Q), EVIL)
    page = Parsed(tree_page(store, Q))
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert EVIL.replace("\x1b", " ") in page.text
    assert page.open == 0


async def test_the_page_names_no_address_and_forbids_every_other(store: TraceStore) -> None:
    await asked(store, shaded)
    page = Parsed(tree_page(store, Q))
    assert not [v for k, v in page.attributes if k in ("src", "href", "action", "srcset", "style")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert "url(" not in tree_page(store, Q)
    assert "@import" not in tree_page(store, Q)


async def test_less_likely_tokens_are_shaded_darker(store: TraceStore) -> None:
    await asked(store, shaded)
    html = tree_page(store, Q)
    assert 'sure&lt;<span class="s5" title="0.050">?</span>' in html


async def test_the_page_tells_costs_votes_checks_and_persons(store: TraceStore) -> None:
    context = await asked(store, shaded, checker=rejecting("wrong"))
    await override(context, Q, "/0.0.0", "why")
    text = Parsed(tree_page(store, f"{Q}~1")).text
    for part in ("by human", "by base, 1 call, 13 tokens", "check passed: why+sure<?"):
        assert part in text
    assert f"edited since, as {Q}~1" in Parsed(tree_page(store, Q)).text
    assert "answer, vote 0, base: 10 + 3 tokens, 0.50 s" in Parsed(tree_page(store, Q)).text


@pytest.mark.parametrize("word", ["prefers-color-scheme:dark", "viewport", "<details open>"])
async def test_it_is_for_light_and_dark_for_phones_and_folds(store: TraceStore, word: str) -> None:
    await asked(store, shaded)
    assert word in tree_page(store, Q)
