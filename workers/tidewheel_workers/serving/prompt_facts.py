"""What a gateway can tell of a prompt without a tokenizer: its length, what it begins with, and its system prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tidewheel_workers.serving.openai_api import CHARACTERS_PER_TOKEN

#: Prompts that agree in so many leading characters (about 64 tokens) may share computed KV.
BLOCK_CHARACTERS = 256
#: Prefixes of so many blocks are told apart: whose first block is a common system prompt may differ in the fourth.
DEPTHS = (4, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFacts:
    """A prompt as a gateway sees it."""

    characters: int
    prefixes: tuple[int, ...] = ()  # 64-bit hashes of its leading blocks, the longest prefix first


def facts_of(body: Mapping[str, Any]) -> PromptFacts:
    """The facts of a request that is known to be valid: a conversation, or a text or token ids."""
    characters = 0
    beginning: list[str] = []
    wanted = BLOCK_CHARACTERS * DEPTHS[0]
    for text in _texts(body):
        characters += len(text)
        if wanted > 0:
            beginning.append(text[:wanted])
            wanted -= len(text)
    if beginning:
        head = "".join(beginning)
        # the same text in other roles is another prompt; what is left of that is so little that nothing is lost
        depths = [depth for depth in DEPTHS if len(head) >= depth * BLOCK_CHARACTERS]
        prefixes = tuple(_hash(head[: depth * BLOCK_CHARACTERS]) for depth in depths)
    else:
        prefixes = ()
    return PromptFacts(characters=characters, prefixes=prefixes)


def system_prompt_sha256(body: Mapping[str, Any]) -> str:
    """SHA-256 in hexadecimal of the text before the first other message; empty when there is none."""
    texts = []
    for message in body.get("messages") or ():
        if message.get("role") not in ("system", "developer"):
            break
        texts.append("".join(_parts(message.get("content"))))
    return hashlib.sha256("\n".join(texts).encode()).hexdigest() if texts else ""


def _texts(body: Mapping[str, Any]) -> Iterator[str]:
    """The pieces of a prompt, in order."""
    if "messages" in body:
        for message in body["messages"]:
            yield from _parts(message.get("content"))
        return
    prompt = body.get("prompt") or ""
    if isinstance(prompt, str):
        yield prompt
    elif isinstance(prompt[0], str):
        yield from prompt
    else:
        # each id as so many characters, written out as far as prefixes reach
        reach = BLOCK_CHARACTERS * DEPTHS[0] // CHARACTERS_PER_TOKEN
        yield "".join(f"{int(token):0{CHARACTERS_PER_TOKEN}x}" for token in islice(prompt, reach))
        yield " " * (CHARACTERS_PER_TOKEN * max(0, len(prompt) - reach))


def _parts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif content:
        for part in content:
            yield part.get("text") or ""


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little")
