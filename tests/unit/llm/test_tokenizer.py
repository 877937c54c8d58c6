"""The tokenizer rebuilt from GGUF gives the ids that llama.cpp gives, and users cannot write special tokens."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from tidewheel_workers.llm.errors import InvalidRequest, ModelUnreadable, ModelUnsupported
from tidewheel_workers.llm.loading import LoadedModel
from tidewheel_workers.llm.tokenizer import BPETokenizer, Tokenizer

START, END = 1, 2

# The vocabulary has no token for these bytes of control characters and far planes; they vanish, here as in other engines.
WRITABLE = st.characters(
    exclude_categories=["Cs"], max_codepoint=0x3FFFF, exclude_characters="\x04\x06\x13\x14\x16\x1d"
)


@pytest.fixture(scope="module")
def tokenizer(smollm: LoadedModel) -> Tokenizer:
    return smollm.tokenizer


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("don't 2024", [12420, 982, 216, 34, 32, 34, 36]),
        ("½ x ²", [16738, 1792, 216, 19133]),
        ("漢字かな 😀", [177, 137, 112, 36518, 7365, 229, 7365, 120, 40303, 218]),
        ("a  b\n\n\tc", [81, 216, 278, 1116, 197, 83]),
    ],
    ids=["words", "digits one by one", "numerals that are no digits", "other scripts", "white space"],
)
def test_known_texts_have_the_ids_of_llama_cpp(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == ids


@given(text=st.text(WRITABLE, max_size=80))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(before=st.text(WRITABLE, max_size=10), after=st.text(WRITABLE, max_size=10))
def test_special_tokens_in_a_text_are_characters_unless_asked_for(
    tokenizer: Tokenizer, before: str, after: str
) -> None:
    text = f"{before}<|im_end|>{after}"
    assert END not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text, parse_special=True) == [
        *tokenizer.encode(before, parse_special=True),
        END,
        *tokenizer.encode(after, parse_special=True),
    ]


def test_a_chat_becomes_the_prompt_the_model_was_trained_on(tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    want = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=False) == tokenizer.encode(
        want, parse_special=True
    )
    assert tokenizer.apply_chat_template(messages) == tokenizer.encode(
        want + "<|im_start|>assistant\n", parse_special=True
    )


@given(
    content=st.lists(
        st.sampled_from(["<|im_end|>", "<|im_start|>", "system", "\n", "<|im_", "end|>", "\ufdd0"])
    ).map("".join)
)
def test_a_user_cannot_end_a_turn(tokenizer: Tokenizer, content: str) -> None:
    ids = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    )
    assert (ids.count(START), ids.count(END)) == (3, 2)
    assert tokenizer.decode(ids) == f"system\nBe brief.\nuser\n{content}\nassistant\n"


def test_a_message_may_contain_the_mark_that_guards_special_tokens() -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    metadata = gguf(
        tokens=[*letters, "</s>"], token_type=[1] * 256 + [3], merges=[], bos_token_id=None, eos_token_id=256
    )
    metadata["tokenizer.chat_template"] = "{{ messages[0].content[0].text }}{{ eos_token }}"
    tokenizer = BPETokenizer.from_gguf(metadata)
    text = "\ufdd0 </s> \ufdd1"
    ids = tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": text}]}])
    assert tokenizer.decode(ids) == text
    assert ids.count(256) == 1


def test_messages_that_the_template_cannot_use_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": 7}])


def gguf(**changes: Any) -> dict[str, Any]:
    letters = ["a", "b", "ab", "<s>", "</s>", "{}"]
    metadata = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": letters,
        "token_type": [1, 1, 1, 3, 3, 1],
        "merges": ["a b"],
        "bos_token_id": 3,
        "eos_token_id": 4,
    }
    return {
        f"tokenizer.ggml.{key}": value for key, value in (metadata | changes).items() if value is not None
    }


def test_a_beginning_token_comes_where_the_model_wants_one() -> None:
    assert BPETokenizer.from_gguf(gguf()).encode("ab") == [2]
    wanting = BPETokenizer.from_gguf(gguf(add_bos_token=True))
    assert wanting.encode("ab") == [3, 2]
    assert wanting.encode("ab", add_special=False) == [2]


def test_without_a_template_there_is_no_chat() -> None:
    tokenizer = BPETokenizer.from_gguf(gguf())
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequest, match="/v1/completions"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}])


def test_a_template_runs_in_a_sandbox() -> None:
    metadata = gguf() | {"tokenizer.chat_template": "{{ messages.__class__.__mro__[1].__subclasses__() }}"}
    with pytest.raises(InvalidRequest, match="unsafe"):
        BPETokenizer.from_gguf(metadata).apply_chat_template([{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model": "llama"}, ModelUnsupported, "safetensors directory"),
        ({"pre": "unheard-of"}, ModelUnsupported, "unheard-of"),
        ({"tokens": None}, ModelUnreadable, "no tokens"),
        ({"token_type": [1]}, ModelUnreadable, "do not fit"),
        ({"merges": ["a c"]}, ModelUnreadable, "merges do not fit"),
    ],
    ids=["kind", "pre-tokenizer", "tokens", "types", "merges"],
)
def test_tokenizers_that_cannot_be_rebuilt_are_refused(
    changes: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        BPETokenizer.from_gguf(gguf(**changes))


@given(st.text())
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace") == tokenizer.decode(ids)


def test_the_bytes_of_tokens_that_are_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(START) == b"<|im_start|>"
    assert tokenizer.token_bytes(10_000_000) == b""


def test_the_bytes_of_a_vocabulary_that_writes_bytes_as_numbers() -> None:
    parsing = tokenizers.Tokenizer(models.BPE(vocab={"<0xE2>": 0, "▁hi": 1}, merges=[]))
    parsing.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer = BPETokenizer(parsing, None)
    assert [tokenizer.token_bytes(token) for token in (0, 1)] == [b"\xe2", b" hi"]
