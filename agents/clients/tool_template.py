"""Tools as text, in the form of Hermes, for chat templates that leave them out."""

TOOLS = """\
{%- set text = namespace(turns=[], results='', system='') -%}
{%- if tools -%}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set text.system = messages[0]['content'] -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- set signatures = namespace(lines='') -%}
{%- for tool in tools -%}
{%- set signatures.lines = signatures.lines + '\n' + (tool | tojson) -%}
{%- endfor -%}
{%- set text.system = (text.system + '\n\n' if text.system else '') + '# Tools\n\nYou may call one \
or more functions to assist with the user query.\n\nYou are provided with function signatures \
within <tools></tools> XML tags:\n<tools>' + signatures.lines + '\n</tools>\n\nFor each function \
call, return a json object with function name and arguments within <tool_call></tool_call> XML \
tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' -%}
{%- set text.turns = [{'role': 'system', 'content': text.system}] -%}
{%- endif -%}
{%- for message in messages -%}
{%- set said = message['content'] or '' -%}
{%- if message['role'] == 'tool' -%}
{%- set text.results = (text.results + '\n' if text.results else '') + '<tool_response>\n' + \
said + '\n</tool_response>' -%}
{%- if loop.last or messages[loop.index]['role'] != 'tool' -%}
{%- set text.turns = text.turns + [{'role': 'user', 'content': text.results}] -%}
{%- set text.results = '' -%}
{%- endif -%}
{%- elif message['tool_calls'] -%}
{%- set calls = namespace(text=said) -%}
{%- for call in message['tool_calls'] -%}
{%- set function = call['function'] or call -%}
{%- set given = function['arguments'] -%}
{%- set calls.text = (calls.text + '\n' if calls.text else '') + '<tool_call>\n{"name": ' + \
(function['name'] | tojson) + ', "arguments": ' + (given if given is string else given | tojson) + \
'}\n</tool_call>' -%}
{%- endfor -%}
{%- set text.turns = text.turns + [{'role': 'assistant', 'content': calls.text}] -%}
{%- else -%}
{%- set text.turns = text.turns + [message] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = text.turns -%}
"""
"""Makes plain turns of tools, calls and results; a result follows as the user's words."""
