"""Text that comes a token at a time is the text that all tokens together make, and never half a character."""

import json
import random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from engine.tokenizer import ByteTokenizer, Detokenizer, HubTokenizer

QUICK = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
BROKEN = "\N{REPLACEMENT CHARACTER}"
TRAINED_ON = [
    "Hello, world! It's a nice day, isn't it?  two  spaces\n",
    "naïve café — “quoted” ",
    "日本語のテキスト 中文 한국어",
    "😀👩‍👩‍👧‍👦🇩🇪 e\u0301 ñ",
]
PIECES = [
    *TRAINED_ON,
    " ",
    "  ",
    "\n",
    "a",
    "é",
    "e\u0301",
    "中",
    "文",
    "😀",
    "👩‍👧",
    "🇩🇪",
    "שלום",
    "\x00",
    "<eos>",
    "▁",
]
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.text(max_size=20), st.text("é中😀 a", max_size=20)
).map(lambda text: text.replace(BROKEN, ""))


def byte_level():
    """As GPT-2's: any byte is a token, and tokens end inside characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<eos>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    return tokenizer


def byte_fallback():
    """As Llama's: spaces are part of words, and characters that it has not seen are spelt in bytes."""
    words = Tokenizer(models.BPE())
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<eos>"]
    words.train_from_iterator(
        TRAINED_ON[:2], trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    )
    learnt = json.loads(words.to_str())["model"]
    names = dict.fromkeys([*special, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]])
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[tuple(pair) for pair in learnt["merges"]],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    tokenizer.normalizer = words.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - takes seconds

    return {
        "bytes": ByteTokenizer(),
        "byte_level": HubTokenizer(PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<eos>")),
        "byte_fallback": HubTokenizer(
            PreTrainedTokenizerFast(tokenizer_object=byte_fallback(), eos_token="<eos>", unk_token="<unk>")
        ),
    }


@pytest.fixture(params=["bytes", "byte_level", "byte_fallback"])
def tokenizer(tokenizers, request):
    return tokenizers[request.param]


def increments(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


def byte_id(byte):
    """Of a byte in the tokenizer with byte fallback."""
    return 2 + byte


# Whole texts


@QUICK
@given(text=texts)
@example(text="  leading")
@example(text="👩‍👩‍👧‍👦👩‍👩‍👧‍👦")
def test_increments_of_a_text_are_its_whole_characters(tokenizer, text):
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    given = ""
    for i, piece in enumerate(increments(tokenizer, ids)):
        assert BROKEN not in piece
        given += piece
        # Nothing that is whole is held back.
        assert given.startswith(tokenizer.decode(ids[: i + 1]).rstrip(BROKEN))
    assert given == whole


@QUICK
@given(before=texts, after=texts)
def test_a_replacement_character_that_a_text_holds_comes_too(tokenizer, before, after):
    ids = tokenizer.encode(before + BROKEN + after)
    pieces = increments(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert BROKEN in "".join(pieces)


@QUICK
@given(parts=st.lists(texts, min_size=2, max_size=4))
def test_special_tokens_leave_no_trace(tokenizers, parts):
    for name, special in (("byte_level", 0), ("byte_fallback", 1)):
        ids = []
        for part in parts:
            ids += [special, special, *tokenizers[name].encode(part)]
        text = "".join(increments(tokenizers[name], [*ids, special]))
        assert text == tokenizers[name].decode(ids)


# Tokens as a model without sense makes them


@pytest.mark.parametrize("name", ["bytes", "byte_level"])
@QUICK
@given(data=st.data())
def test_increments_of_any_tokens_are_the_text_and_end_in_no_broken_character(tokenizers, name, data):
    # Of bytes from few characters, many are whole, many are not.
    spelt = st.sampled_from([*"é中😀".encode(), 97, 32])
    if name == "byte_level":
        from transformers.convert_slow_tokenizer import bytes_to_unicode  # noqa: PLC0415 - takes seconds

        spelt = spelt.map(bytes_to_unicode().get).map(tokenizers[name]._tokenizer.convert_tokens_to_ids)
    ids = data.draw(st.lists(st.one_of(spelt, st.integers(0, 329)), max_size=40))
    *pieces, last = increments(tokenizers[name], ids)
    assert "".join(pieces) + last == tokenizers[name].decode(ids)
    assert not any(piece.endswith(BROKEN) for piece in pieces)


@QUICK
@given(data=st.data())
def test_broken_bytes_between_words_come_as_broken_characters(tokenizers, data):
    tokenizer = tokenizers["byte_fallback"]
    word = st.sampled_from([tokenizer.encode(word) for word in ("Hello", "nice day", "a", "  ")])
    whole = st.sampled_from("é中😀").map(lambda char: [byte_id(byte) for byte in char.encode()])
    broken = st.sampled_from([b"\xe4", b"\xe4\xb8", b"\x80", b"\xf0\x9f\x98", b"\xff"]).map(
        lambda run: [byte_id(byte) for byte in run]
    )
    ids = data.draw(word)
    for run in data.draw(st.lists(st.one_of(st.lists(whole, min_size=1, max_size=3), st.tuples(broken)), max_size=5)):
        ids = [*ids, *(i for part in run for i in part), *data.draw(word)]
    assert "".join(increments(tokenizer, ids)) == tokenizer.decode(ids)


def test_text_that_has_been_given_is_not_taken_back(tokenizers):
    # Such a decoder makes a whole run of bytes broken characters where one of them is; what was whole when it came
    # stays as it was given.
    run = [byte_id(byte) for byte in "中".encode() + b"\xff"]
    assert tokenizers["byte_fallback"].decode(run) == BROKEN * 4
    assert "".join(increments(tokenizers["byte_fallback"], run)) == "中" + BROKEN * 3


# Details


def test_the_bytes_of_a_character_come_together():
    assert increments(ByteTokenizer(), list("aé😀".encode())) == ["a", "", "é", "", "", "", "😀", ""]


def test_what_never_becomes_whole_comes_at_the_end():
    assert increments(ByteTokenizer(), [97, *"😀".encode()[:3]]) == ["a", "", "", "", BROKEN]


def test_what_is_known_to_be_broken_comes_with_what_follows():
    assert increments(ByteTokenizer(), [0xF0, 0x9F, 97]) == ["", "", BROKEN + "a", ""]


def test_a_detokenizer_can_be_used_again_after_a_flush():
    detokenizer = Detokenizer(ByteTokenizer())
    assert [detokenizer.push(0xF0), detokenizer.flush(), detokenizer.flush()] == ["", BROKEN, ""]
    assert [detokenizer.push(97), detokenizer.flush()] == ["a", ""]


def test_ids_that_are_no_bytes_are_shown():
    assert ByteTokenizer().decode([97, 300, 98]) == "a<300>b"
    assert "".join(increments(ByteTokenizer(), [0xE4, 300])) == BROKEN + "<300>"


def test_only_the_last_few_tokens_are_decoded_each_time(tokenizer):
    longest = 0

    class Watched:
        def decode(self, ids):
            nonlocal longest
            longest = max(longest, len(ids))
            return tokenizer.decode(ids)

    rng = random.Random(0)
    ids = tokenizer.encode("".join(rng.choices(PIECES, k=300)).replace("<eos>", ""))
    assert len(ids) > 400
    assert "".join(increments(Watched(), ids)) == tokenizer.decode(ids)
    # Two characters of the longest kind.
    assert longest <= 12
