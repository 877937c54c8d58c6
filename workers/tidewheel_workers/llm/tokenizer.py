"""Text to token ids and back: byte-level BPE from tokenizer.json or from GGUF metadata, and the chat template's prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from tidewheel_workers.llm.chat import ChatTemplate
from tidewheel_workers.llm.errors import InvalidRequest, ModelUnreadable, ModelUnsupported
from tidewheel_workers.llm.fields import Fields
from tidewheel_workers.llm.safetensors_file import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_CONTROL, _USER_DEFINED = 3, 4  # token types in GGUF

_LLAMA3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


class Tokenizer(Protocol):
    """What the engine and the servers need of a tokenizer."""

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be turned into a prompt."""

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text.
            add_special: put the beginning-of-sequence token in front, if the model wants one.
            parse_special: read `<|im_end|>` and its like as the special token, not as these characters. Off for
                text that comes from users.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids, without special tokens."""

    def token_bytes(self, token: int) -> bytes:
        """One token as bytes of UTF-8, which may be part of a character; special ones by their name."""

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """The prompt of a conversation.

        Special tokens written inside a message stay plain characters, so that a user cannot end a turn.

        Raises:
            InvalidRequest: the model has no chat template, or it refuses these messages.
        """


class BPETokenizer:
    """A tokenizer on Hugging Face's `tokenizers` library, which is what the models were trained with.

    Characters whose bytes a vocabulary lacks (SmolLM2's has no token for some control characters) vanish, as they do
    in other engines.
    """

    def __init__(self, parsing: tokenizers.Tokenizer, template: ChatTemplate | None) -> None:
        self._parsing = parsing
        # the same, except that special tokens in a text are characters like others
        self._plain = tokenizers.Tokenizer.from_str(parsing.to_str())
        self._plain.encode_special_tokens = True
        self._template = template
        added = parsing.get_added_tokens_decoder()
        self._added = frozenset(map(int, added))
        self._special = {str(token.content): int(index) for index, token in added.items() if token.special}
        self._is_byte_level = '"ByteLevel"' in json.dumps(json.loads(parsing.to_str())["decoder"])
        # longest first, so that no token hides a longer one that begins with it
        spellings = sorted(map(re.escape, self._special), key=len, reverse=True)
        self._spelled = re.compile(f"({'|'.join(spellings)})" if spellings else "(?!)")

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """From tokenizer.json, tokenizer_config.json and chat_template.jinja of a Hugging Face repository.

        Raises:
            ModelUnreadable: a file is missing or damaged.
        """
        path = directory / "tokenizer.json"
        try:
            parsing = tokenizers.Tokenizer.from_buffer(path.read_bytes())
        except Exception as error:  # the library raises bare Exception for what it cannot parse
            raise ModelUnreadable(f"{path} cannot be read as a tokenizer: {error}") from error
        parsing.no_truncation()
        parsing.no_padding()
        config = Fields(read_json(directory / "tokenizer_config.json", missing={}), "tokenizer_config.json")
        own = directory / "chat_template.jinja"
        source = own.read_text(errors="replace") if own.is_file() else _default_template(config)
        names = {key: _content(config, key) for key in ("bos_token", "eos_token")}
        return cls(parsing, ChatTemplate(source, **names) if source else None)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """From GGUF metadata.

        Raises:
            ModelUnsupported: a kind of tokenizer that is not rebuilt here.
            ModelUnreadable: keys are missing or do not fit each other.
        """
        kind, words = metadata.get("tokenizer.ggml.model"), str(metadata.get("tokenizer.ggml.pre", "default"))
        if kind != "gpt2" or words not in _WORDS:
            raise ModelUnsupported(
                f"the GGUF file's tokenizer is {kind!r} with pre-tokenizer {words!r}; rebuilt from GGUF are gpt2 with "
                f"{', '.join(_WORDS)}. Use the model's safetensors directory, whose tokenizer.json is read as it is"
            )
        fields = Fields(metadata, "the GGUF file")
        tokens = fields.many("tokenizer.ggml.tokens", str)
        types = fields.many("tokenizer.ggml.token_type", int) or [1] * len(tokens)
        pairs = [merge.partition(" ") for merge in fields.many("tokenizer.ggml.merges", str)]
        merges = [(left, right) for left, blank, right in pairs if blank]
        if not tokens or len(types) != len(tokens) or len(merges) != len(pairs):
            raise ModelUnreadable(
                "the GGUF file's tokenizer has no tokens, or types or merges that do not fit them"
            )
        normalizer, splitting, ignore_merges = _WORDS[words]
        try:
            model = models.BPE(
                vocab={token: index for index, token in enumerate(tokens)},
                merges=merges,
                ignore_merges=ignore_merges,
            )
        except Exception as error:  # the library raises bare Exception
            raise ModelUnreadable(f"the GGUF file's merges do not fit its tokens: {error}") from error
        parsing = tokenizers.Tokenizer(model)
        if normalizer is not None:
            parsing.normalizer = normalizer
        parsing.pre_tokenizer = splitting
        parsing.decoder = decoders.ByteLevel()
        marked = list(zip(tokens, types, strict=True))
        parsing.add_special_tokens(
            [AddedToken(t, special=True, normalized=False) for t, k in marked if k == _CONTROL]
        )
        parsing.add_tokens([AddedToken(t, normalized=False) for t, k in marked if k == _USER_DEFINED])
        names = {
            f"{name}_token": tokens[index]
            for name in ("bos", "eos")
            if (index := fields.maybe(f"tokenizer.ggml.{name}_token_id", int)) is not None
            and 0 <= index < len(tokens)
        }
        if metadata.get("tokenizer.ggml.add_bos_token") and "bos_token" in names:
            bos = names["bos_token"]
            try:
                parsing.post_processor = processors.TemplateProcessing(
                    single=f"{bos} $A", special_tokens=[(bos, metadata["tokenizer.ggml.bos_token_id"])]
                )
            except ValueError as error:
                raise ModelUnreadable(
                    f"the GGUF file's beginning-of-sequence token {bos!r} cannot be put before a text: {error}"
                ) from error
        source = fields.maybe("tokenizer.chat_template", str)
        return cls(parsing, ChatTemplate(source, **names) if source else None)

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be turned into a prompt."""
        return self._template is not None

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """As in `Tokenizer`."""
        chosen = self._parsing if parse_special else self._plain
        ids: list[int] = chosen.encode(text, add_special_tokens=add_special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """As in `Tokenizer`."""
        return str(self._parsing.decode(list(ids), skip_special_tokens=True))

    def token_bytes(self, token: int) -> bytes:
        """As in `Tokenizer`."""
        piece = self._parsing.id_to_token(token)
        if piece is None:
            return b""  # a vocabulary padded to a round size
        if token in self._added:
            return str(piece).encode()
        if self._is_byte_level:
            return b"".join(_BYTES.get(character) or character.encode() for character in piece)
        if (byte := _BYTE_FALLBACK.fullmatch(piece)) is not None:
            return bytes([int(byte[1], 16)])
        return str(self._parsing.decode([token], skip_special_tokens=False)).encode()

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """As in `Tokenizer`.

        Where a message's text spells a special token, a mark is put inside before the template runs and taken out
        afterwards: what is still whole in the rendered prompt came from the template and becomes the special token,
        what was marked is encoded as characters.
        """
        if self._template is None:
            raise InvalidRequest("the model has no chat template; use /v1/completions with a prompt")
        mark = _unused_mark(messages)
        prompt = self._template.render(
            self._guarded(messages, mark), add_generation_prompt=add_generation_prompt
        )
        if mark not in prompt:
            return self.encode(prompt, add_special=False, parse_special=True)
        ids: list[int] = []
        for piece in self._spelled.split(prompt):
            if piece in self._special:
                ids.append(self._special[piece])
            else:
                ids += self.encode(piece.replace(mark, ""), add_special=False)
        return ids

    def _guarded(self, value: Any, mark: str) -> Any:
        """The same value with the mark after the first character of each special token spelled in a string."""
        if isinstance(value, str):
            return self._spelled.sub(lambda found: found[0][0] + mark + found[0][1:], value)
        if isinstance(value, Mapping):
            return {key: self._guarded(inner, mark) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._guarded(inner, mark) for inner in value]
        return value


def _byte_characters() -> dict[str, bytes]:
    """How byte-level vocabularies write bytes: printable ones as themselves, the others from U+0100 on (GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): bytes([byte]) for byte in plain} | {
        chr(256 + place): bytes([byte]) for place, byte in enumerate(others)
    }


_BYTES = _byte_characters()
#: How vocabularies of SentencePiece write a byte that no token covers.
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


def _unused_mark(messages: Sequence[Mapping[str, Any]]) -> str:
    """A Unicode noncharacter that no message contains."""
    used = set().union(*map(set, _strings(messages)))
    mark = next((chr(code) for code in range(0xFDD0, 0xFDF0) if chr(code) not in used), None)
    if mark is None:
        raise InvalidRequest("the messages contain every Unicode noncharacter from U+FDD0 to U+FDEF")
    return mark


def _strings(value: Any) -> Iterator[str]:
    """All strings inside a JSON-like value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _default_template(config: Fields) -> str | None:
    """tokenizer_config.json holds one template, or several with names."""
    if not config.is_a("chat_template", list):
        return config.maybe("chat_template", str)
    named = (
        Fields(one, "chat_template in tokenizer_config.json") for one in config.many("chat_template", dict)
    )
    return next((one.maybe("template", str) for one in named if one.maybe("name", str) == "default"), None)


def _content(config: Fields, name: str) -> str:
    """tokenizer_config.json writes a token as a string or as an object."""
    token = config.inner(name).maybe("content", str) if config.is_a(name, dict) else config.maybe(name, str)
    return token or ""


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


# GGUF's name of a way to split words: normalizer, pre-tokenizer, whether whole words skip the merges
_WORDS: dict[str, tuple[normalizers.Normalizer | None, pre_tokenizers.PreTokenizer, bool]] = {
    "default": (None, _byte_level(), False),
    "gpt-2": (None, _byte_level(), False),
    "smollm": (None, _single_digits(), False),
    "llama-bpe": (None, _split(_LLAMA3_WORDS), True),
    "qwen2": (normalizers.NFC(), _split(_QWEN2_WORDS), False),
}
