"""Texts against JSON Schemas that a program sends."""

import re
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from reflux.agents.answer_checks import schema_problem

CITY = {"type": "object", "required": ["city"]}


@pytest.mark.parametrize(
    ("text", "schema", "problem"),
    [
        ('{"city": "Lima"}', CITY, ""),
        ("{}", CITY, "'city' is a required property"),
        ("Lima", CITY, "Expecting value"),
        ("[" * 100_000, CITY, "recursion|nested"),
        ("{}", {"type": "town"}, "'town' is not valid"),
    ],
)
def test_how_a_text_breaks_a_schema_is_said(text: str, schema: Any, problem: str) -> None:
    found = schema_problem(text, schema)
    assert re.search(problem, found) if problem else found == ""


def test_an_address_in_a_schema_is_not_fetched(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/schema.json").respond_with_json({"type": "object"})
    problem = schema_problem("{}", {"$ref": httpserver.url_for("/schema.json")})
    assert "Unresolvable" in problem and not httpserver.log
