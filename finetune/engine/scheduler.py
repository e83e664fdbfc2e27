"""One model that answers many requests at once, each joining and leaving between any two steps.

Iteration-level batching (Orca, OSDI 2022): a step draws one token for every row; rows that are done
leave at once, and the newcomers' prompts are read as one batch. Only the last token's logits are
computed. What the prompts of a system message begin with is read once and kept.

The products of bf16 numbers are rounded otherwise in another batch, so a row's neighbours can turn
an answer whose best two tokens are nearly equally likely; nothing else of them reaches a row.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from reflux.agents.errors import EndpointError, UsageError
from reflux.agents.types import ChatRequest, Completion, TokenLogprob
from reflux.finetune.engine.kv_cache import ATTENTION, KVCache, SharedPrefix
from reflux.finetune.engine.sampler import SampledTokens, TokenSampler, draw
from reflux.finetune.train.packing import groups_of_like_length

KEPT = 8
"""Beginnings that are kept; the least recently used goes first."""
SHARED_BY = 4
"""Prompts that wait together and begin alike, at which their beginning is kept."""
READ_TOKENS = 4096
"""Tokens of prompts that are read in one forward, padding included."""
PATIENCE = 4
"""Steps for which newcomers wait at the most for others to be read with them."""


@dataclass(eq=False)
class Row:
    """One reply under way."""

    request: ChatRequest
    ids: list[int]
    """The prompt's tokens."""
    most: int
    """Tokens that may be drawn."""
    opening: tuple[int, ...] = ()
    """What every prompt with this system message begins with."""
    dice: TokenSampler | None = None
    drawn: list[SampledTokens] = field(default_factory=list[SampledTokens])
    text: str = ""
    finish: str = ""
    """Why it is done; empty while it is not."""
    dropped: bool = False
    """Nobody waits for it any more."""


@dataclass(eq=False)
class _Group:
    """Rows that share a beginning, and so a forward."""

    beginning: SharedPrefix
    slots: KVCache
    rows: list[Row] = field(default_factory=list[Row])
    """By slot."""
    waiting: list[Row] = field(default_factory=list[Row])
    waited: int = 0
    """Steps since newcomers were last read, while some waited."""


class Decoder:
    """A model and its tokenizer, used by one thread."""

    def __init__(
        self, model: Any, tokenizer: Any, *, rows: int, context: int, keep: bool = True
    ) -> None:
        """
        Args:
            rows: most rows decoded together.
            context: tokens of one request, prompt and completion; fewer where the model takes less.
            keep: False reads what prompts have in common again each time.

        Raises:
            UsageError: a model that does not attend to all that stands before.
        """
        layers = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if layers != {"full_attention"}:
            raise UsageError(
                f"the batched engine knows full attention only, and this model has "
                f"{', '.join(sorted(layers))}: set engine: llama.cpp"
            )
        model.eval()
        model.set_attn_implementation(ATTENTION)
        self._model, self._tokenizer = model, tokenizer
        self._most_rows, self._keep = rows, keep
        self._context = min(context, model.config.max_position_embeddings)
        ends = model.generation_config.eos_token_id
        self._ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        self._groups: OrderedDict[tuple[int, ...], _Group] = OrderedDict()
        self._new: list[Row] = []
        self._openings: dict[tuple[str, ...], tuple[int, ...]] = {}
        self._texts: dict[int, str] = {}

    @property
    def busy(self) -> bool:
        """True while there is a row that is not done."""
        return bool(self._new) or any(g.rows or g.waiting for g in self._groups.values())

    def row(self, request: ChatRequest) -> Row:
        """A request as a row, not yet decoded.

        Raises:
            EndpointError: the prompt fills the context.
            UsageError: the request is no Unicode text, or the chat template refuses it.
        """
        ids = self._ids(request.payload())
        if len(ids) >= self._context:
            refused = EndpointError(
                f"the prompt has {len(ids)} tokens, and with its reply it may have "
                f"{self._context}: shorten it, or raise the engine's context where the model "
                "allows it"
            )
            refused.refused = True
            raise refused
        sampling = request.sampling
        row = Row(request, ids, min(sampling.max_tokens, self._context - len(ids)))
        if self._keep:
            row.opening = self._opening(request, ids)
        if sampling.temperature > 0:
            row.dice = TokenSampler(sampling.seed, request.vote)
        return row

    def add(self, rows: Iterable[Row]) -> None:
        """Have rows decoded from the next step on."""
        self._new += rows

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Read newcomers of one group, or draw a token for its rows; returns who is done.

        Groups take turns.
        """
        self._assign()
        for group in self._groups.values():
            group.waiting = [row for row in group.waiting if not row.dropped]
            self._leave(group, [at for at, row in enumerate(group.rows) if row.dropped])
        turn = next((key for key, g in self._groups.items() if g.rows or g.waiting), None)
        if turn is None:
            return []
        self._groups.move_to_end(turn)
        group = self._groups[turn]
        free = self._most_rows - sum(len(g.rows) for g in self._groups.values())
        newcomers = min(free, len(group.waiting))
        # A forward for one newcomer costs the others nearly a step.
        worth = 4 * newcomers >= len(group.rows) or group.waited >= PATIENCE
        if newcomers and worth:
            self._read(group, newcomers)
        elif group.rows:
            group.waited = group.waited + 1 if group.waiting else 0
            self._advance(group, range(len(group.rows)), group.slots.step(), None)
        done = [at for at, row in enumerate(group.rows) if row.finish]
        finished = [group.rows[at] for at in done]
        self._leave(group, done)
        return finished

    def rest(self) -> None:
        """Give the memory of empty slots back."""
        for group in self._groups.values():
            group.slots.rest()

    def completion(self, row: Row, seconds: float) -> Completion:
        """What a row that is done has become."""
        told = row.request.sampling.top_logprobs > 0
        return Completion(
            row.text,
            prompt_tokens=len(row.ids),
            completion_tokens=len(row.drawn),
            seconds=seconds,
            finish_reason=row.finish,
            logprobs=tuple(self._logprob(d) for d in row.drawn) if told else (),
        )

    def _ids(self, chat: list[dict[str, Any]]) -> list[int]:
        try:
            for message in chat:
                str(message["content"]).encode()
            made = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        except UnicodeEncodeError as error:
            raise UsageError(f"a request must be Unicode text: {error}") from error
        except (ValueError, TypeError, LookupError) as error:
            raise UsageError(f"the chat template refuses the messages: {error}") from error
        return list(made["input_ids"])

    def _opening(self, request: ChatRequest, ids: list[int]) -> tuple[int, ...]:
        """The tokens up to the first user's words, which follow from the system message."""
        first = request.messages[0] if request.messages else ()
        system = first if first[:1] == ("system",) else ()
        if system not in self._openings:
            chats: list[list[dict[str, Any]]] = [
                [
                    dict(zip(("role", "content"), turn, strict=False))
                    for turn in (system, ("user", word))
                    if turn
                ]
                for word in ("Yes?", "no")
            ]
            one, other = map(self._ids, chats)
            same = next(
                at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]
            )
            if len(self._openings) >= 64 * KEPT:
                self._openings.clear()
            self._openings[system] = tuple(one[:same])
        found = self._openings[system]
        return found if len(found) < len(ids) and tuple(ids[: len(found)]) == found else ()

    def _assign(self) -> None:
        """Give each new row its group; beginnings that several new rows share are kept."""
        new, self._new = [row for row in self._new if not row.dropped], []
        shared = Counter(row.opening for row in new)
        for row in new:
            known = row.opening in self._groups or shared[row.opening] >= SHARED_BY
            key = row.opening if known else ()
            if key not in self._groups:
                self._groups[key] = _Group(self._beginning(key), self._slots())
            self._groups[key].waiting.append(row)
        for key in [key for key, g in self._groups.items() if not (g.rows or g.waiting)]:
            if len(self._groups) > KEPT:
                del self._groups[key]

    def _slots(self) -> KVCache:
        return KVCache(self._model.config, self._model.dtype, self._model.device)

    def _beginning(self, ids: tuple[int, ...]) -> SharedPrefix:
        """Read what prompts begin with."""
        if not ids:
            return SharedPrefix()
        slots = self._slots()
        mask, places = slots.read([len(ids)])
        self._forward([list(ids)], mask, places, slots, SharedPrefix())
        return SharedPrefix(ids, slots.layers())

    def _read(self, group: _Group, count: int) -> None:
        """Read the prompts of the first who wait, like lengths together, and draw their firsts."""
        group.waited = 0
        chosen, group.waiting = group.waiting[:count], group.waiting[count:]
        begun = len(group.beginning.ids)
        lengths = [len(row.ids) - begun for row in chosen]
        for part in groups_of_like_length(lengths):
            at_once = max(1, READ_TOKENS // max(lengths[at] for at in part))
            for start in range(0, len(part), at_once):
                rows = [chosen[at] for at in part[start : start + at_once]]
                taken = range(len(group.rows), len(group.rows) + len(rows))
                group.rows += rows
                rest = [row.ids[begun:] for row in rows]
                self._advance(group, taken, group.slots.read([len(r) for r in rest]), rest)

    def _advance(
        self,
        group: _Group,
        slots: Sequence[int],
        window: tuple[torch.Tensor, torch.Tensor],
        prompts: list[list[int]] | None,
    ) -> None:
        """Draw a token for the rows in `slots`, after their prompts or after their last token."""
        rows = [group.rows[at] for at in slots]
        mask, places = window
        width = places.shape[1]
        if prompts is None:
            ids = [[row.drawn[-1].token] for row in rows]
        else:
            ids = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
        logits = self._forward(ids, mask, places, group.slots, group.beginning)
        samplings = [row.request.sampling for row in rows]
        for row, drawn in zip(rows, draw(logits, samplings, [r.dice for r in rows]), strict=True):
            row.drawn.append(drawn)
            self._look(row)

    def _forward(
        self,
        ids: list[list[int]],
        mask: torch.Tensor,
        places: torch.Tensor,
        slots: KVCache,
        beginning: SharedPrefix,
    ) -> torch.Tensor:
        """Logits after the last column, (rows, vocabulary), in float32."""
        out = self._model(
            input_ids=torch.tensor(ids, device=self._model.device),
            attention_mask=mask,
            position_ids=places + len(beginning.ids),
            past_key_values=slots,
            use_cache=True,
            logits_to_keep=1,
            beginning=beginning,
        )
        return out.logits[:, -1].float()

    def _look(self, row: Row) -> None:
        """Is the row done, and with what text?"""
        ended = row.drawn[-1].token in self._ends
        stops = row.request.sampling.stop
        if not ended and not stops and len(row.drawn) < row.most:
            return
        shown = row.drawn[:-1] if ended else row.drawn
        row.text = self._tokenizer.decode([d.token for d in shown], skip_special_tokens=True)
        cuts = [at for stop in stops if stop and (at := row.text.find(stop)) >= 0]
        if cuts:
            row.text = row.text[: min(cuts)]
        if ended or cuts:
            row.finish = "stop"
        elif len(row.drawn) >= row.most:
            row.finish = "length"

    def _leave(self, group: _Group, gone: list[int]) -> None:
        if gone:
            group.rows = [group.rows[at] for at in group.slots.leave(gone)]

    def _logprob(self, drawn: SampledTokens) -> TokenLogprob:
        top = tuple((self._text(token), logprob) for token, logprob in drawn.top)
        return TokenLogprob(self._text(drawn.token), drawn.logprob, top)

    def _text(self, token: int) -> str:
        """A token as text; special ones, the end of a reply among them, are empty."""
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token], skip_special_tokens=True)
        return self._texts[token]
