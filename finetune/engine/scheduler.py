"""One model that answers many requests at once; requests join and leave between any two steps.

Iteration-level batching (Orca, OSDI 2022): a step draws one token for every row. Finished rows
leave at once, and the prompts of new rows are prefilled as one batch. Only the last token's logits
are computed. The shared prefix of a system message's prompts is prefilled once.

bf16 products round differently in another batch, so a row's neighbors can change a token whose two
best candidates are nearly equally likely. Neighbors change nothing else.

Models of other attention than `KVCache` knows are run by `reflux.finetune.engine.generate`.

The continuous batching of transformers 5.23 has one seed for all requests, log-probabilities of
the drawn token only, and no speed on CPUs.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.types import ChatRequest, Completion, Sampling, TokenLogprob
from reflux.finetune.configs.run import BatchedConfig
from reflux.finetune.engine.kv_cache import ATTENTION, Columns, KVCache, SharedPrefix, max_positions
from reflux.finetune.train.packing import common_prefix, groups_of_like_length

MAX_PREFIXES = 8
"""Prefixes that are cached; the least recently used is dropped first."""
MIN_SHARED = 4
"""New prompts with the same prefix that make it worth caching."""
PREFILL_TOKENS = 4096
"""Maximum tokens of prompts in one forward pass, with padding."""
MAX_WAIT = 4
"""Maximum steps for which new rows wait for others to be prefilled with them."""
MIN_PROBABILITY = 0.05
"""Min-p of llama.cpp: a drawn token's minimum probability, as a share of the likeliest token's."""


@dataclass(frozen=True)
class SampledToken:
    """One token and the likeliest alternatives."""

    token: int
    logprob: float = 0.0
    """Natural-log probability before temperature; 0 if the request has no `top_logprobs`."""
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Row:
    """One reply in progress."""

    request: ChatRequest
    ids: list[int]
    max_tokens: int
    prefix: tuple[int, ...] = ()
    """Tokens that every prompt with this system message begins with."""
    generator: torch.Generator | None = None
    """Of the random numbers that the reply takes; None for a greedy one."""
    sampled: list[SampledToken] = field(default_factory=list[SampledToken])
    text: str = ""
    finish: str = ""
    """The finish reason; empty in progress."""
    dropped: bool = False


@dataclass(eq=False)
class _Group:
    """Rows that share a prefix, and therefore a forward pass."""

    prefix: SharedPrefix
    cache: KVCache
    rows: list[Row] = field(default_factory=list[Row])  # by slot of the cache
    waiting: list[Row] = field(default_factory=list[Row])
    waited: int = 0  # steps since the last prefill for which rows have waited

    @property
    def busy(self) -> bool:
        return bool(self.rows or self.waiting)


class Scheduler:
    """A model and its tokenizer, used by one thread."""

    attention: str | None = ATTENTION
    """Name of the attention function; None for the model's own."""

    def __init__(self, model: Any, tokenizer: Any, config: BatchedConfig) -> None:
        model.eval()
        if self.attention is not None:
            model.set_attn_implementation(self.attention)
        self._model, self._tokenizer = model, tokenizer
        self._config = config
        self._context = min(config.context, max_positions(model.config))
        ends = model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        self._ends: set[int] = {end for end in ends if end is not None}
        self._groups: OrderedDict[tuple[int, ...], _Group] = OrderedDict()
        self._new: list[Row] = []
        self._prefixes: dict[tuple[str, ...], tuple[int, ...]] = {}
        self._texts: dict[int, str] = {}

    @property
    def busy(self) -> bool:
        return bool(self._new) or any(group.busy for group in self._groups.values())

    def add(self, request: ChatRequest) -> Row:
        """A request as a row, which starts at the next step.

        Raises:
            EndpointError: the prompt fills the context.
            UsageError: the request is not Unicode text, or the chat template refuses it.
        """
        ids = self._tokenize(request.payload())
        if len(ids) >= self._context:
            error = EndpointError(
                f"the prompt has {len(ids)} tokens, and with its reply may have {self._context}: "
                "shorten it, or raise batched.context of the config where the model allows it"
            )
            error.refused = error.too_long = True
            raise error
        sampling = request.sampling
        row = Row(request, ids, min(sampling.max_tokens, self._context - len(ids)))
        if self._config.prefix_cache:
            row.prefix = self._prefix(request, ids)
        if sampling.temperature > 0:
            row.generator = seeded(sampling.seed, request.vote)
        self._new.append(row)
        return row

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Prefill new rows of the next group, or draw a token for its rows; returns those done."""
        self._assign_groups()
        for group in self._groups.values():
            group.waiting = [row for row in group.waiting if not row.dropped]
            self._remove(group, [slot for slot, row in enumerate(group.rows) if row.dropped])
        turn = next((key for key, group in self._groups.items() if group.busy), None)
        if turn is None:
            return []
        self._groups.move_to_end(turn)
        group = self._groups[turn]
        free = self._config.rows - sum(len(g.rows) for g in self._groups.values())
        count = min(free, len(group.waiting))
        # The prefill of one row costs the others nearly a step.
        worthwhile = 4 * count >= len(group.rows) or group.waited >= MAX_WAIT
        if count and worthwhile:
            self._prefill(group, count)
        elif group.rows:
            group.waited = group.waited + 1 if group.waiting else 0
            last = [[row.sampled[-1].token] for row in group.rows]
            self._draw(group.rows, self._forward(group, last, group.cache.step()))
        slots = [slot for slot, row in enumerate(group.rows) if row.finish]
        finished = [group.rows[slot] for slot in slots]
        self._remove(group, slots)
        return finished

    def release(self) -> None:
        """Release the memory of empty caches."""
        for group in self._groups.values():
            group.cache.release()

    def completion(self, row: Row, seconds: float) -> Completion:
        reported = row.sampled if row.request.sampling.top_logprobs else ()
        return Completion(
            row.text,
            prompt_tokens=len(row.ids),
            completion_tokens=len(row.sampled),
            seconds=seconds,
            finish_reason=row.finish,
            logprobs=tuple(map(self._logprob, reported)),
        )

    def _tokenize(self, chat: list[dict[str, Any]]) -> list[int]:
        try:
            for message in chat:
                str(message["content"]).encode()
            encoding = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        except UnicodeEncodeError as error:
            raise UsageError(f"a request must be Unicode text: {error}") from error
        except (ValueError, TypeError, LookupError) as error:
            raise UsageError(f"the chat template refuses the messages: {error}") from error
        return list(encoding["input_ids"])

    def _prefix(self, request: ChatRequest, ids: list[int]) -> tuple[int, ...]:
        """The tokens before the first user's words, which depend on the system message only."""
        first = request.messages[0] if request.messages else ()
        system = first if first[:1] == ("system",) else ()
        if system not in self._prefixes:
            head = [{"role": "system", "content": system[1]}] if system else []
            users = [{"role": "user", "content": word} for word in ("Yes?", "no")]
            prompts = [self._tokenize([*head, user]) for user in users]
            if len(self._prefixes) >= 64 * MAX_PREFIXES:
                self._prefixes.clear()
            self._prefixes[system] = tuple(common_prefix(prompts))
        prefix = self._prefixes[system]
        return prefix if len(prefix) < len(ids) and tuple(ids[: len(prefix)]) == prefix else ()

    def _assign_groups(self) -> None:
        """Give each new row its group, and cache prefixes that several new rows share."""
        new, self._new = [row for row in self._new if not row.dropped], []
        counts = Counter(row.prefix for row in new)
        for row in new:
            cached = row.prefix in self._groups or counts[row.prefix] >= MIN_SHARED
            key = row.prefix if cached else ()
            if key not in self._groups:
                self._groups[key] = self._group(key)
            self._groups[key].waiting.append(row)
        for key in [key for key, group in self._groups.items() if not group.busy]:
            if len(self._groups) > MAX_PREFIXES:
                del self._groups[key]

    def _group(self, ids: tuple[int, ...]) -> _Group:
        """An empty group, whose prefix is prefilled."""
        model = self._model
        cache = KVCache(model.config, model.dtype, model.device)
        if not ids:
            return _Group(SharedPrefix(), cache)
        alone = self._group(())
        self._forward(alone, [list(ids)], alone.cache.prefill([len(ids)]))
        return _Group(SharedPrefix(ids, alone.cache.first_row()), cache)

    def _prefill(self, group: _Group, count: int) -> None:
        """Prefill the first waiting rows, grouped by length, and draw their first tokens."""
        group.waited = 0
        chosen, group.waiting = group.waiting[:count], group.waiting[count:]
        start = len(group.prefix.ids)
        lengths = [len(row.ids) - start for row in chosen]
        for part in groups_of_like_length(lengths):
            batch = max(1, PREFILL_TOKENS // max(lengths[index] for index in part))
            for first in range(0, len(part), batch):
                rows = [chosen[index] for index in part[first : first + batch]]
                group.rows += rows
                prompts = [row.ids[start:] for row in rows]
                width = max(map(len, prompts))
                columns = group.cache.prefill(list(map(len, prompts)))
                padded = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
                self._draw(rows, self._forward(group, padded, columns))

    def _draw(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        samplings = [row.request.sampling for row in rows]
        tokens = draw(logits, samplings, [row.generator for row in rows])
        for row, token in zip(rows, tokens, strict=True):
            row.sampled.append(token)
            self._update_finish(row)

    def _forward(self, group: _Group, ids: list[list[int]], columns: Columns) -> torch.Tensor:
        """Logits after the last column, (rows, vocabulary), in float32."""
        out = self._model(
            input_ids=torch.tensor(ids, device=self._model.device),
            attention_mask=columns.mask,
            position_ids=columns.positions + len(group.prefix.ids),
            past_key_values=group.cache,
            use_cache=True,
            logits_to_keep=1,
            prefix=group.prefix,
            columns=columns,
        )
        return out.logits[:, -1].float()

    def _update_finish(self, row: Row) -> None:
        """Set the text and the finish reason of a row that is done."""
        ended = row.sampled[-1].token in self._ends
        stops = row.request.sampling.stop
        if not ended and not stops and len(row.sampled) < row.max_tokens:
            return
        sampled = row.sampled[:-1] if ended else row.sampled
        row.text = self._tokenizer.decode([s.token for s in sampled], skip_special_tokens=True)
        cuts = [index for stop in stops if stop and (index := row.text.find(stop)) >= 0]
        row.text = row.text[: min(cuts, default=None)]
        if ended or cuts:
            row.finish = "stop"
        elif len(row.sampled) >= row.max_tokens:
            row.finish = "length"

    def _remove(self, group: _Group, slots: list[int]) -> None:
        if slots:
            group.rows = [group.rows[slot] for slot in group.cache.free(slots)]

    def _logprob(self, sampled: SampledToken) -> TokenLogprob:
        top = tuple((self._text(token), logprob) for token, logprob in sampled.top)
        return TokenLogprob(self._text(sampled.token), sampled.logprob, top)

    def _text(self, token: int) -> str:
        """A token as text; special tokens, such as the end of a reply, are empty."""
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token], skip_special_tokens=True)
        return self._texts[token]


def seeded(seed: int, vote: int) -> torch.Generator:
    """The random numbers of one vote, a separate stream for each."""
    return torch.Generator().manual_seed((seed * 1_000_003 + vote) % 2**63)


def draw(
    logits: torch.Tensor,
    samplings: Sequence[Sampling],
    generators: Sequence[torch.Generator | None],
) -> list[SampledToken]:
    """A token for each row of logits (rows, vocabulary); without a generator the likeliest, where
    ties go to the lower id."""
    best, best_ids = logits.max(1)
    tokens = best_ids.tolist()
    for row, generator in enumerate(generators):
        if generator is not None:
            number = float(torch.rand((), generator=generator, dtype=torch.float64))
            tokens[row] = _token_at(logits[row], samplings[row].temperature, number)
    drawn = [SampledToken(token) for token in tokens]
    reported = [row for row, sampling in enumerate(samplings) if sampling.top_logprobs]
    if not reported:
        return drawn
    chosen = logits if len(reported) == len(tokens) else logits[reported]
    total = chosen.logsumexp(1)
    ids = torch.tensor([[tokens[row]] for row in reported], device=logits.device)
    logprobs = (chosen.gather(1, ids)[:, 0] - total).tolist()
    limit = max(samplings[row].top_logprobs for row in reported)
    if limit == 1:  # `max` has found the likeliest token; topk would search again.
        top, top_ids = best[reported, None], best_ids[reported, None]
    else:
        top, top_ids = chosen.topk(min(limit, chosen.shape[1]))
    top_logprobs, top_tokens = (top - total[:, None]).tolist(), top_ids.tolist()
    for index, row in enumerate(reported):
        count = samplings[row].top_logprobs
        pairs = zip(top_tokens[index][:count], top_logprobs[index][:count], strict=True)
        drawn[row] = SampledToken(tokens[row], logprobs[index], tuple(pairs))
    return drawn


def _token_at(logits: torch.Tensor, temperature: float, number: float) -> int:
    """The token at a quantile, 0 to 1, of the likely tokens' cumulative distribution."""
    probabilities = (logits / temperature).softmax(0, dtype=torch.float64)
    probabilities[probabilities < MIN_PROBABILITY * probabilities.max()] = 0
    cumulative = probabilities.cumsum(0)
    token = int(torch.searchsorted(cumulative, number * cumulative[-1], right=True))
    return min(token, int(probabilities.nonzero()[-1]))
