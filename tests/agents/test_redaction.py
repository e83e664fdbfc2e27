"""Keys and passwords do not leave in a text, and what looks a little like them does."""

import time

import pytest

from reflux.agents.redaction import redact

A40 = "aB3/" * 10
SECRETS = [
    "sk-proj-abcDEF0123456789abcDEF", "sk-ant-api03-abcDEF0123456789-abc_DEF",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "github_pat_11ABCDEFG0abcdefghij_klmnop",
    "hf_abcdefghijklmnopqrstuvwxyz", "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE",
    "AIzaSyA-0123456789abcdefghijklmnopqrstu", "xoxb-1234567890-abc", "glpat-abcdefghij0123456789",
    "npm_" + "a1" * 18,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "sk_live_" + "a1" * 8,
]  # fmt: skip
NAMED = [
    ("aws_secret_access_key = {}", A40), ("Authorization: Bearer {}", "abc123" * 4),
    ('"api_key": "{}"', "0123456789abcdef0123"), ("OPENAI_API_KEY={}", "local-key-0123456789"),
    ("X-Api-Key: {}", "0123456789abcdef"), ("password: {}", "correct1horse2battery"),
    ("postgresql://me:{}@db:5432/x", "hunter2"), ("access_token='{}'", "ya29.a0AfH6SMBx0123456789"),
    (r'{{\"body\": \"{{\\\"apiKey\\\": \\\"{}\\\"', "0123456789abcdef"),
    ('{{"auth-token": "{}"}}', "0123456789abcdef"),
]  # fmt: skip
KEPT = [
    "What is the secret of a good password?", "the api key: ask your administrator for it",
    "max_tokens=4096", "token: <unk>", "password: swordfish", "12+34=46, so 46 is the key",
    "api_key=os.environ['OPENAI_API_KEY_OF_THE_TEAM']", "see https://example.org:8080/a@b",
    "task-force-one-hundred-and-more", "access_token=settings.access_token_of_the_user",
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
def test_a_key_of_a_known_form_is_removed_wherever_it_stands(secret: str) -> None:
    assert redact(f"use {secret}, then go") == "use [redacted], then go"
    assert secret not in redact(f'{{"a": "{secret}"}}')


@pytest.mark.parametrize(("around", "secret"), NAMED)
def test_a_value_that_is_named_a_secret_is_removed_and_its_name_stays(
    around: str, secret: str
) -> None:
    assert redact(around.format(secret)) == around.format("[redacted]")


@pytest.mark.parametrize("text", KEPT)
def test_what_is_none_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("text", [*SECRETS, *(a.format(s) for a, s in NAMED)])
def test_what_was_redacted_is_not_changed_again(text: str) -> None:
    """So a replay finds the same text."""
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "part",
    ["api_key=", "eyJa.", "bearer  ", "a://b:", "authorization: ", "secret_key:::", "password= a"],
)
def test_no_text_takes_more_than_time_that_grows_with_it(part: str) -> None:
    def seconds(count: int) -> float:
        begun = time.process_time()
        redact(part * count + "a" * count)
        return time.process_time() - begun

    fewer = max(min(seconds(2_000) for _ in range(3)), 1e-4)
    assert min(seconds(16_000) for _ in range(3)) < 32 * fewer
