"""The certificate of a student: every engine that can run it gives plain PEFT's greedy answers.

    reference    transformers and PEFT, `generate`, the tokenizer and template of its folder
    batched      the batched engine, on the merged weights, with the base's fitted template
    llama.cpp    the GGUF of the base with the exported adapter, where both exist

They answer a few of the training prompts and some fixed ones, token for token and through the token
that ends the reply. A wrong scale or template changes most answers; rows in a wrong order may
change few where training hardly moved them (`benchmarks/certificate.py`). Rounding changes a few:
bf16 products depend on the batch, and llama.cpp may run 4-bit weights. So an answer also counts
where its first other token is one that PEFT finds nearly as likely.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel

from reflux.agents.clients.llama_cpp import EngineConfig, ModelFiles, start_server
from reflux.agents.errors import EndpointError, RefluxError
from reflux.agents.types import ChatRequest, Sampling
from reflux.finetune.base_model import load_base, quiet_libraries
from reflux.finetune.bases import Base
from reflux.finetune.configs.run import BatchedConfig
from reflux.finetune.data.questions import canary_prompts
from reflux.finetune.engine.generate import scheduler_for
from reflux.finetune.engine.kv_cache import max_positions
from reflux.finetune.registry import ADAPTER_GGUF

ROW_PROMPTS, FIXED_PROMPTS, TOKENS = 22, 2, 8
NEAR = 0.5
"""Nats: most by which PEFT may prefer its own token to another engine's."""
MAX_PROMPT = 1024
"""Tokens of the longest prompt that is compared."""
Chat = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answer:
    """A greedy answer, through the token that ends it."""

    tokens: tuple[int, ...]
    ended: bool = False
    """True if the reply ended before the limit; some engines leave out the token that ends it."""


def certify(base: Base, student: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The certificate of the student in a folder, as plain JSON types.

    `agreement` is the share of prompts on which the engine that agrees least gives PEFT's answer,
    or one that is `near` it. An engine that cannot load the student agrees on none, and its `error`
    says why.
    """
    with quiet_libraries():
        # The weights as the engines run them, also where the training was on 4-bit ones.
        whole = base.config.model_copy(update={"quantization": "none"})
        model, tokenizer = load_base(base.folder, config=whole)
        own = transformers.AutoTokenizer.from_pretrained(
            student, local_files_only=True, trust_remote_code=False
        )
        longest = min(MAX_PROMPT, max_positions(model.config) - TOKENS - 1)
        chats = [chat for chat in _chats(rows) if len(_ids(own, chat)) <= longest]
        peft: Any = PeftModel.from_pretrained(model, str(student)).eval()
        reference, logits, ends = _generated(peft, own, chats)
        answers = {"batched": _batched(peft.merge_and_unload(), tokenizer, chats)}
    adapter = student / ADAPTER_GGUF
    engines: dict[str, dict[str, Any]] = {}
    if base.gguf is not None and adapter.is_file() and find_spec("xllamacpp"):
        try:
            files = ModelFiles(base.gguf, adapter, student, base)
            answers["llama.cpp"] = _llama_cpp(files, chats)
        except RefluxError as error:  # The training is not lost for it.
            engines["llama.cpp"] = {"same": 0, "near": 0, "error": str(error)}
    for name, given in answers.items():
        gaps = [
            _gap(expected, answer, table, ends)
            for expected, answer, table in zip(reference, given, logits, strict=True)
        ]
        same = sum(gap is None for gap in gaps)
        near = sum(gap is not None and gap <= NEAR for gap in gaps)
        engines[name] = {"same": same, "near": near}
    least = min(counts["same"] + counts["near"] for counts in engines.values())
    return {"n": len(chats), "agreement": round(least / len(chats), 4), "engines": engines}


def _chats(rows: Sequence[Mapping[str, Any]]) -> list[Chat]:
    """Prompts of rows from all over the training set, and the fixed ones."""
    plain = {"role", "content"}  # Turns without tool calls, which every engine reads alike.
    prompts = [row["prompt"] for row in rows]
    prompts = [chat for chat in prompts if all(plain == set(turn) for turn in chat)]
    texts = list(dict.fromkeys(map(json.dumps, prompts)))
    step = max(1, len(texts) // ROW_PROMPTS)
    chosen = [json.loads(text) for text in texts[::step][:ROW_PROMPTS]]
    fixed = canary_prompts(FIXED_PROMPTS)
    return [*chosen, *([{"role": "user", "content": text}] for text in fixed)]


def _generated(
    model: Any, tokenizer: Any, chats: Sequence[Chat]
) -> tuple[list[Answer], list[torch.Tensor], set[int]]:
    """(answers, the logits of each answer's steps (tokens, vocabulary), the ending tokens)."""
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    padding = tokenizer.pad_token_id
    padding = tokenizer.eos_token_id if padding is None else padding
    # Without the penalties and filters that a model card recommends.
    settings = transformers.GenerationConfig(eos_token_id=sorted(ends), pad_token_id=padding)
    whole = model.get_base_model()
    whole.generation_config = model.generation_config = settings
    ids = [_ids(tokenizer, chat) for chat in chats]
    width = max(map(len, ids))
    with torch.inference_mode():
        made = model.generate(
            input_ids=torch.tensor(
                [[padding] * (width - len(row)) + row for row in ids], device=model.device
            ),
            attention_mask=torch.tensor(
                [[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device
            ),
            do_sample=False,
            max_new_tokens=TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
    answers = [_through_end(row, ends) for row in made.sequences[:, width:].tolist()]
    logits = torch.stack(made.logits, 1).float()  # (rows, tokens, vocabulary)
    return answers, list(logits), ends


def _ids(tokenizer: Any, chat: Chat) -> list[int]:
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])


def _through_end(tokens: Sequence[int], ends: set[int]) -> Answer:
    for index, token in enumerate(tokens):
        if token in ends:
            return Answer(tuple(tokens[: index + 1]), ended=True)
    return Answer(tuple(tokens))


def _batched(model: Any, tokenizer: Any, chats: Sequence[Chat]) -> list[Answer]:
    scheduler = scheduler_for(model, tokenizer, BatchedConfig(rows=len(chats)))
    sampling = Sampling(max_tokens=TOKENS)
    requests = [
        ChatRequest("student", tuple((turn["role"], turn["content"]) for turn in chat), sampling)
        for chat in chats
    ]
    rows = [scheduler.add(request) for request in requests]
    while scheduler.busy:
        scheduler.step()
    return [
        Answer(tuple(drawn.token for drawn in row.sampled), row.finish == "stop") for row in rows
    ]


def _llama_cpp(files: ModelFiles, chats: Sequence[Chat]) -> list[Answer]:
    server = start_server(files, EngineConfig(parallel=4))

    def ask(chat: Chat) -> Answer:
        body = {
            "messages": [dict(turn) for turn in chat],
            "temperature": 0,
            "max_tokens": TOKENS,
            # The raw tokens: log-probabilities leave out those that end within a character.
            "return_tokens": True,
            "verbose": True,
        }
        reply = server.handle_chat_completions(body)
        reply = json.loads(reply) if isinstance(reply, str | bytes) else reply
        if "choices" not in reply:
            raise EndpointError(f"llama.cpp refuses a prompt of the training: {reply}")
        (choice,) = reply["choices"]
        tokens = tuple(reply["__verbose"]["tokens"])
        return Answer(tokens, choice["finish_reason"] == "stop")

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(ask, chats))


def _gap(expected: Answer, answer: Answer, logits: torch.Tensor, ends: set[int]) -> float | None:
    """Nats by which PEFT prefers its token to the engine's where they first differ; None where the
    answers are the same.

    `logits` (tokens, vocabulary) are those of PEFT's steps. An engine may leave out the token that
    ends a reply.
    """
    for step, token in enumerate(expected.tokens):
        if step < len(answer.tokens):
            other = {answer.tokens[step]}
        else:
            other = ends if answer.ended else set[int]()
        if token in other or (token in ends and other & ends):
            continue
        if not other:
            return float("inf")
        scores = logits[step]
        return float(scores.max() - max(scores[rival] for rival in other))
    return None
