"""Fixtures that several test files share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from reflux.agents.clients.llama_cpp import SPIN_VARIABLE, SPINS
from reflux.graphs.traces.store import TraceStore

if TYPE_CHECKING:
    from tests.support.serving import Scripted

# Workers share the cores: who waits lets the others work. It is read when torch is first imported,
# here or in the process that forks the commands.
os.environ.setdefault(SPIN_VARIABLE, SPINS)

# A shell that starts the tests in the background has them ignore SIGINT, and so every command that
# they start. These tests interrupt commands.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more of the machine than of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, so that no worker ends alone with one of them."""
    kinds = ("slow", "engine", "process", "browser")
    ranks: dict[Path, int] = {}
    for item in items:
        rank = min((kinds.index(m.name) for m in item.iter_markers() if m.name in kinds), default=9)
        ranks[item.path] = min(rank, ranks.get(item.path, rank))
    items.sort(key=lambda item: ranks[item.path])


@pytest.fixture
def script() -> "Iterator[Scripted]":
    """A scripted endpoint."""
    from tests.support.serving import scripted

    with scripted() as script:
        yield script


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    """An empty trace file."""
    store = TraceStore(tmp_path / "traces.db")
    yield store
    store.close()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of some 100,000 weights with a byte tokenizer and ChatML, as a folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_base")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: at for at, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocab),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            eos_token_id=vocab["<|im_end|>"],
            pad_token_id=vocab["<|im_end|>"],
            tie_word_embeddings=True,
            # Large enough that its logits can say anything decided.
            initializer_range=0.2,
        )
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder
