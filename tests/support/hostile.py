"""Replies that models give to H's prompt, from sound to hostile, and the step that each one is.

None stands for a reply without a step: H asks again, and in the end leaves the question to X.
"""

import json
from typing import Any

from reflux.agents.types import Answer, Ask, Step, SubQuestion

QUESTION = "What are the capitals of France and Japan?"
FRANCE = "What is the capital of France?"
JAPAN = "What is the capital of Japan?"
BOTH = Ask.of(FRANCE, JAPAN)
ANSWER = Answer("Paris and Tokyo")


def asks(*items: Any) -> str:
    return json.dumps({"ask": list(items)})


def item(question: Any, *needs: Any) -> dict[str, Any]:
    return {"question": question, "needs": list(needs)}


SOUND = asks(item(FRANCE), item(JAPAN))
EARLIER = Ask(
    (SubQuestion(FRANCE), SubQuestion(JAPAN), SubQuestion("Which is older, {0} or {1}?", (0, 1)))
)
REJECTED = "sub-questions rejected: {} (3 replies)"
LOSES = REJECTED.format('the batch loses "France", "Japan"')
TRANSLATED = REJECTED.format("the batch is in another language than the question")
REPEATS = REJECTED.format("sub-question 1 repeats the question")
LEFT_OUT = "1 of 3 sub-questions left out"
PART = Ask((SubQuestion(FRANCE), SubQuestion(JAPAN)), LEFT_OUT)

REPLIES: dict[str, tuple[str, Step | None]] = {
    "sound batch": (SOUND, BOTH),
    "sound answer": ('{"answer": "Paris and Tokyo"}', ANSWER),
    "in the schema's wrapper": (json.dumps({"step": json.loads(SOUND)}), BOTH),
    "answer in the schema's wrapper": ('{"step": {"answer": "Paris and Tokyo"}}', ANSWER),
    "prose around it": (f"Sure! Here you go:\n{SOUND}\nHope this helps {{smile}}.", BOTH),
    "fenced": (f"```json\n{SOUND}\n```", BOTH),
    "fence never closed": (f"```\n{SOUND}", BOTH),
    "after thinking": (f'<think>{{"answer": "x"}} no, split</think>{SOUND}', BOTH),
    "thinking never ends": ('<think>I could say {"answer": "x"} but', None),
    "cut within the second question": (SOUND[: SOUND.index("of Japan")], Ask.of(FRANCE)),
    "cut within the needs": (SOUND[: SOUND.rindex("]}") - 2], BOTH),
    "cut within the first question": ('{"ask": [{"question": "What is the', None),
    "cut within the answer": ('{"answer": "Paris and', None),
    "brackets never closed": (SOUND.rstrip("]}"), BOTH),
    "list closed by a brace": (f'{{"ask": ["{FRANCE}", "{JAPAN}"}}', BOTH),
    "trailing commas": (f'{{"ask": [{{"question": "{FRANCE}",}}, "{JAPAN}",],}}', BOTH),
    "python literals": (str(json.loads(SOUND)), BOTH),
    "none beside the step": (f"{{'answer': None, 'ask': ['{FRANCE}', '{JAPAN}']}}", BOTH),
    "apostrophe in single quotes": ("{'answer': 'It's Paris and Tokyo's'}",
        Answer("It's Paris and Tokyo's")),
    "unescaped quotes": ('{"answer": "He said "hi" to her"}', Answer('He said "hi" to her')),
    "no quotes at all": (f"{{ask: [{FRANCE}, {JAPAN}]}}", BOTH),
    "curly quotes": (f"{{“ask”: [“{FRANCE}”, “{JAPAN}”]}}", BOTH),
    "sub_questions": (json.dumps({"sub_questions": [FRANCE, JAPAN]}), BOTH),
    "Sub-Questions": (json.dumps({"Sub-Questions": [FRANCE, JAPAN]}), BOTH),
    "questions": (json.dumps({"questions": [{"text": FRANCE}, {"q": JAPAN}]}), BOTH),
    "a dict of questions": (json.dumps({"ask": {"1": FRANCE, "2": JAPAN}}), BOTH),
    "q1 and q2": (json.dumps({"q1": FRANCE, "q2": JAPAN}), BOTH),
    "a bare list": (json.dumps([FRANCE, JAPAN]), BOTH),
    "a bare list of objects": (json.dumps([item(FRANCE), item(JAPAN)]), BOTH),
    "one object a line": (f"{json.dumps(item(FRANCE))}\n{json.dumps(item(JAPAN))}", BOTH),
    "one question, no list": (json.dumps({"ask": FRANCE}), Ask.of(FRANCE)),
    "numbered lines": (f"I would ask:\n1. {FRANCE}\n2) **{JAPAN}**\nThat is all.", BOTH),
    "bulleted lines": (f"- {FRANCE}\n* {JAPAN}\n", BOTH),
    "numbered orders": (
        "1. Find the capital of France\n2. Find the capital of Japan",
        Ask.of("Find the capital of France", "Find the capital of Japan"),
    ),
    "nested lists": (asks([[item(FRANCE)], [[item(JAPAN)]]]), BOTH),
    "values that are no text": (asks(item(FRANCE), item(JAPAN), item(7), None, True, 1.5), BOTH),
    "answer is a number": ('{"answer": 4}', Answer("4")),
    "answer is a fraction": ('{"answer": 3.10}', Answer("3.10")),
    "answer is a list": ('{"answer": ["Paris", "Tokyo"]}', Answer("Paris, Tokyo")),
    "answer is an object": ('{"answer": {"France": "Paris"}}', Answer('{"France": "Paris"}')),
    "answer is empty": ('{"answer": ""}', None),
    "empty list": ('{"ask": []}', None),
    "empty object": ("{}", None),
    "the prompt's own pattern": ('{"ask": [{"question": "...", "needs": []}]}', None),
    "the pattern of an answer": ('{"answer": "..."}', None),
    "its own question": (asks(item(f"  {QUESTION.upper()} ")), Ask((), REPEATS)),
    "its own question, reworded": (
        asks(item("Which are the capitals of France and of Japan?")), Ask((), REPEATS),
    ),
    "two ways to say its own question": (
        asks(item("Which are the capitals of France and Japan?"), item(QUESTION.rstrip("?"))),
        Ask((), REPEATS),
    ),
    "the countries are lost": (
        asks(item("What are the capitals of these countries?")),
        Ask((), REJECTED.format(
            'sub-question 1 dangles: "these countries" stands for nothing; '
            'sub-question 1 loses "France", "Japan"'
        )),
    ),
    "about nothing": (
        asks(item("What is the final answer?")),
        Ask((), REJECTED.format(
            'sub-question 1 dangles: "the final answer" stands for nothing; '
            'sub-question 1 loses "France", "Japan"'
        )),
    ),
    "the prompt's own example": (
        asks(item("When was the Eiffel Tower built?"), item("When was Big Ben built?")),
        Ask((), REJECTED.format(
            'the batch invents "Eiffel", "Tower", "Big", "Ben", and loses "France", "Japan"'
        )),
    ),
    "its own question among others": (
        asks(item(FRANCE), item(QUESTION), item(JAPAN)), PART,
    ),
    "its own question, which another needs": (
        asks(item(QUESTION), item("Is {0} true?", 0), item(FRANCE)),
        Ask((SubQuestion(FRANCE),), "2 of 3 sub-questions left out"),
    ),
    "repeats": (asks(item(FRANCE), item(JAPAN), item(FRANCE.lower())), PART),
    "a repeat is needed": (
        asks(item(FRANCE), item(FRANCE), item(JAPAN), item("Which is older, {1} or {2}?", 1, 2)),
        Ask(EARLIER.subquestions, "1 of 4 sub-questions left out"),
    ),
    "500 sub-questions": (
        asks(*(item(f"Which city of France is number {i}?") for i in range(500))),
        Ask(
            tuple(SubQuestion(f"Which city of France is number {i}?") for i in range(8)),
            "cut from 500 to 8 sub-questions",
        ),
    ),
    "500 sub-questions about nothing": (
        asks(*(item(f"What is {i}?") for i in range(500))),
        Ask((), REJECTED.format(
            'the batch invents "0", "1", "2", "3" and 4 more, and loses "France", "Japan"'
        )),
    ),
    "needs itself": (asks(item(FRANCE, 0), item(JAPAN, 1)), BOTH),
    "needs one another": (
        asks(item(FRANCE, 1), item(JAPAN, 0)),
        Ask((SubQuestion(FRANCE), SubQuestion(JAPAN, (0,)))),
    ),
    "asks for itself": (
        asks(item("What is {0}?", 0)),
        Ask((), REJECTED.format('sub-question 1 loses "France", "Japan"')),
    ),
    "only a place that nothing fills": (
        asks(item("What is the capital of {7}?", 7)),
        Ask((), REJECTED.format('sub-question 1 loses "France", "Japan"')),
    ),
    "a circle of places": (
        asks(item("Is {1} in France?", 1), item("Is {0} in Japan?", 0), item(FRANCE)),
        Ask((SubQuestion(FRANCE),), "2 of 3 sub-questions left out"),
    ),
    "needs a later one": (
        asks(item("Which is older, {1} or {2}?", 1, 2), item(FRANCE), item(JAPAN)), EARLIER,
    ),
    "needs none that is there": (asks(item(FRANCE, 9, -1), item(JAPAN, 10**12)), BOTH),
    "needs of every sort": (
        asks(item(FRANCE, None), item(JAPAN, True, {}, "no"),
             item("Which is older, {0} or {1}?", "0", FRANCE, "sub-question 1")),
        EARLIER,
    ),
    "numbers from one": (
        asks(item(FRANCE), item(JAPAN), item("Which is older, {1} or {2}?", 1, 2)), EARLIER,
    ),
    "places without needs": (
        asks(item(FRANCE), item(JAPAN), {"question": "Which is older, {0} or {1}?"}), EARLIER,
    ),
    "a place that nothing fills": (
        asks(item(FRANCE), item(JAPAN), item("What of {7}?")), PART,
    ),
    "a place too long to be a number": (
        asks(item(f"Is Paris in France {{{'1' * 5000}}}?")),
        Ask.of(f"Is Paris in France {{{'1' * 5000}}}?"),
    ),
    "nul bytes": ("\0" + SOUND.replace("capital", "cap\\u0000ital\0"), BOTH),
    "half a surrogate pair": ('{"answer": "Paris \\ud83d"}', Answer("Paris \ufffd")),
    "an escaped emoji": ('{"answer": "\\ud83d\\ude00"}', Answer("😀")),
    "a recursion bomb of lists": ("[" * 50_000 + "]" * 50_000, None),
    "a recursion bomb of objects": ('{"ask":' * 20_000, None),
    "a recursion bomb before the step": ("[" * 1_000 + "]" * 1_000 + SOUND, BOTH),
    "a megabyte of prose": ("word " * 200_000, None),
    "a megabyte of quotes": ("{'\"" * 350_000, None),
    "a megabyte of open strings": ('{"a' * 350_000, None),
    "a megabyte after the step": (SOUND + "\n{}" * 350_000, BOTH),
    "empty": ("", None),
    "white space": (" \n\t\r ", None),
    "brackets alone": ("{[}]", None),
    "french": (
        '{"ask": ["Quelle est la capitale de la France ?", "Et celle du Japon ?"]}',
        Ask.of("Quelle est la capitale de la France ?", "Et celle du Japon ?"),
    ),
    "japanese lines": (
        "1. フランスの首都は？\n2. 日本の首都は？", Ask((), TRANSLATED),
    ),
    "french prose": ("Je ne parle pas anglais, désolé.", None),
    "refusal": ("I'm sorry, but as an AI model I can't help with that [sic].", None),
    "refusal with points": ("I can't:\n- it is unclear\n- it may be unsafe", None),
    "not decomposable": (
        '{"not_decomposable": "it is one fact"}', Ask((), "not decomposable: it is one fact"),
    ),
    "not decomposable, said otherwise": (
        '{"decomposable": false, "reason": "it is one fact"}',
        Ask((), "not decomposable: it is one fact"),
    ),
    "not decomposable, no reason": (
        '{"not_decomposable": true}', Ask((), "not decomposable: no reason given"),
    ),
    "not decomposable is false": (
        json.dumps({"not_decomposable": False, "ask": [FRANCE, JAPAN]}), BOTH,
    ),
    "a batch and an answer": (json.dumps({"answer": "x", "ask": [FRANCE, JAPAN]}), BOTH),
}  # fmt: skip
