"""docs/openai-api.md names every field that is read, every field that is refused, and no error that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from tidewheel_workers.serving import openai_api
from tidewheel_workers.serving.api_keys import read_keys

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "openai-api.md").read_text()
SOURCES = "\n".join(
    path.read_text() for path in (ROOT / "workers" / "tidewheel_workers" / "serving").rglob("*.py")
)


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def words(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_*]+)`", text))


def test_every_field_that_is_read_is_in_the_table():
    documented = words(" ".join(row[0] for row in rows("What a request may say")).replace(".", "` `"))
    read = set(openai_api.ChatRequest.model_fields) | set(openai_api.CompletionRequest.model_fields)
    assert read - {"kv_transfer_params"} <= documented


def test_every_field_that_is_refused_is_named():
    documented = words(section("What a request may say").partition("\n\nRefused")[2])
    patterns = {re.compile(word.replace("*", ".*")) for word in documented}
    for field in set(openai_api.UNSUPPORTED) - {"tool_choice", "function_call", "response_format"}:
        assert any(pattern.fullmatch(field) for pattern in patterns), field


def test_bounds_are_those_of_the_code():
    told = {words(row[0]).pop(): row[2] for row in rows("What a request may say") if words(row[0])}
    assert f"{openai_api.MOST_PROMPTS} prompts" in told["prompt"]
    assert f"1 to {openai_api.MOST_CHOICES}" in told["n"]
    assert f"{openai_api.MOST_STOPS} texts" in told["stop"]
    assert f"{openai_api.MOST_BIASES} token ids" in told["logit_bias"]


def test_every_error_of_the_table_exists():
    for status, codes, *_ in rows("Errors"):
        assert status.isdigit()
        for code in words(codes):
            assert f'"{code}"' in SOURCES, code


def test_the_lines_of_keys_that_it_shows_are_understood():
    example = section("API keys").partition("```\n")[2].partition("```")[0]
    plain, limited = read_keys(example.encode())
    assert (plain.name, limited.name) == ("unnamed", "search")
    settings = {row[0].strip("`") for row in rows("API keys")}
    assert settings == {"name", "rpm", "tpm", "concurrent", "max_tokens"}
