"""The chat template of a base, made to render every prompt of ours the same wherever it is used.

Training, the batched engine and whoever serves a student read one template, which is saved with
the student. It begins with the lines below where the base's own needs them:

    no template               a plain one: `User: …`, `Assistant:`, and the answer on a line of its
                              own, since a space before it would merge with its first word
    refuses system messages   the system message goes before the first user's words
    knows `enable_thinking`   fixed to one value, so that rows and requests are rendered alike
    leaves out tools          where `base.tools: text` asks for it, tools go into the system words,
                              calls and results into the turns, in the form of Hermes (NousResearch,
                              Hermes-Function-Calling), which llama.cpp and vLLM read back

An empty system message is left out for templates that refuse one.
"""

from typing import Any

from jinja2 import TemplateError

from reflux.agents.clients.tool_template import TOOLS
from reflux.agents.errors import UsageError
from reflux.finetune.configs.run import BaseConfig

PLAIN = """\
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content + '\n\n' if message.content else '' }}
{%- elif message.role == 'user' -%}
{{ 'User: ' + message.content + '\n\n' }}
{%- elif message.role == 'assistant' -%}
{{ 'Assistant:\n' + (message.content or '') + eos_token }}{{ '\n\n' if not loop.last else '' }}
{%- else -%}
{{ message.role.capitalize() + ': ' + (message.content or '') + '\n\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:\n' }}{%- endif -%}
"""
"""For a tokenizer without a template."""
FOLD_SYSTEM = """\
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set first = messages[0]['content'] -%}
{%- set rest = messages[1:] -%}
{%- if first and rest -%}
{%- set opening = {'role': rest[0]['role'], 'content': first + '\n\n' + rest[0]['content']} -%}
{%- set messages = [opening] + rest[1:] -%}
{%- else -%}
{%- set messages = rest -%}
{%- endif -%}
{%- endif -%}
"""
"""Puts a system message before the words of the first user."""
THINKING = "{%%- set enable_thinking = %s -%%}\n"
PROBE = {"role": "user", "content": "Yes?"}


def fit_template(tokenizer: Any, config: BaseConfig) -> list[str]:
    """Give a tokenizer the template that rows and requests are rendered by; what was changed, in
    words.

    Raises:
        UsageError: the template cannot render a user's question.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):  # Several templates, of which tools may have one.
        template = template.get("default")
    if not template:
        if not tokenizer.eos_token:
            raise UsageError("the base has no chat template and no end-of-text token: add one")
        tokenizer.chat_template = PLAIN if config.tools == "template" else TOOLS + PLAIN
        return ["no chat template: `User: …` and `Assistant:` take its place"]
    notes: list[str] = []
    given = template
    if "enable_thinking" in template:
        template = THINKING % ("true" if config.thinking else "false") + template
        notes.append(f"thinking is {'on' if config.thinking else 'off'}, in rows and in requests")
    if _refuses_system(tokenizer, template):
        template = FOLD_SYSTEM + template
        notes.append("the template refuses system messages: they go before the user's words")
    tokenizer.chat_template = given
    if config.tools == "text" and missing_tools(tokenizer):
        template = TOOLS + template
        notes.append("the template leaves out tools: they are rendered as text, as Hermes does")
    tokenizer.chat_template = template
    try:
        text = tokenizer.apply_chat_template([PROBE], tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError, TypeError, LookupError) as error:
        raise UsageError(
            f"the base's chat template cannot render a question: {error}; correct it in the base"
        ) from error
    if PROBE["content"] not in text:
        raise UsageError("the base's chat template leaves out the question: correct it in the base")
    return notes


def missing_tools(tokenizer: Any) -> list[str]:
    """What a tokenizer's template leaves out of a conversation with tools: `tools`, `tool calls`
    or `tool results`."""
    schema = {"type": "object", "properties": {"kind_qw": {"type": "string"}}}
    offered = {"name": "tool_zx", "description": "Tells.", "parameters": schema}
    call = {"name": "called_zx", "arguments": {"key_zx": "value_zx"}}
    chat = [
        PROBE,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": call}],
        },
        {"role": "tool", "name": "called_zx", "content": "result_zx"},
    ]
    call["id"] = chat[1]["tool_calls"][0]["id"] = chat[2]["tool_call_id"] = "call12345"
    parts = {
        "tools": ([PROBE], ("tool_zx", "kind_qw")),
        "tool calls": (chat[:2], ("called_zx", "key_zx", "value_zx")),
        "tool results": (chat, ("result_zx",)),
    }
    missing: list[str] = []
    for name, (turns, words) in parts.items():
        try:
            text = tokenizer.apply_chat_template(
                turns, tools=[{"type": "function", "function": offered}], tokenize=False
            )
        except (TemplateError, ValueError, TypeError, LookupError):
            text = ""
        if not all(word in text for word in words):
            missing.append(name)
    return missing


def _refuses_system(tokenizer: Any, template: str) -> bool:
    """True where a template raises on a system message, or leaves it out."""
    words = "Answer in one word."
    chat = [{"role": "system", "content": words}, PROBE]
    try:
        text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
    except (TemplateError, ValueError, TypeError, LookupError):
        return True
    return words not in text
