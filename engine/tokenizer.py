"""Text to token ids and back, and back a token at a time."""

from pathlib import Path
from typing import Any, Protocol

from engine.errors import ConfigError, ModelError, RequestError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer(Protocol):
    """What the engine asks of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """The token ids of a prompt.

        Raises:
            RequestError: It is not text: it has half of a surrogate pair.
        """
        ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids; incomplete characters come out as U+FFFD."""
        ...


class ByteTokenizer:
    """A token for each byte of UTF-8, for models without a tokenizer; other ids are shown as `<id>`."""

    def encode(self, text: str) -> list[int]:
        """The bytes."""
        return list(_check_text(text))

    def decode(self, token_ids: list[int]) -> str:
        """The text; surrogates and stray bytes come out as U+FFFD."""
        parts = (bytes([i]) if i < 256 else f"<{i}>".encode() for i in token_ids)
        return b"".join(parts).decode(errors="replace")


class HubTokenizer:
    """A Hugging Face tokenizer; special tokens (end of text) are left out of texts."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """The token ids, with the special tokens that the tokenizer puts around a prompt."""
        _check_text(text)
        return list(self._tokenizer(text).input_ids)

    def decode(self, token_ids: list[int]) -> str:
        """The text."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _check_text(text: str) -> bytes:
    """The text in UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise RequestError(f"the prompt {text!a} is not text: it has half of a surrogate pair") from None


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")


def load_tokenizer(name: str | None, model_folder: Path | None, vocab_size: int) -> Tokenizer:
    """The tokenizer that is asked for, else the model's own, else one of bytes.

    Args:
        name: `byte`, a folder, or a hub id; None leaves it to the model.
        model_folder: The model's checkpoint, where there is one.
        vocab_size: The model's.

    Raises:
        ModelError: It cannot be had.
        ConfigError: The model has too few ids for bytes.
    """
    source = name
    if name is None and model_folder is not None and any((model_folder / file).exists() for file in _TOKENIZER_FILES):
        source = str(model_folder)
    if source is None or source == "byte":
        if vocab_size < 256:
            raise ConfigError(f"a byte tokenizer needs 256 ids, but the model has {vocab_size}; name another tokenizer")
        return ByteTokenizer()
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds

    try:
        return HubTokenizer(AutoTokenizer.from_pretrained(source))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "name another with the option tokenizer, or tokenizer='byte'"
        raise ModelError(f"the tokenizer of {source} cannot be read ({reason}); {hint}") from error


class Detokenizer:
    """Turns a growing list of tokens into text piece by piece, and never gives half a character.

    A token can end inside a character, whose bytes then decode to U+FFFD until the rest has come; so text is given
    up to the U+FFFDs at its end, and those only when nothing more can come. Only the last few tokens are decoded
    each time: a window that begins at a place where the text so far was whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        # Tokens of the window whose text has been given, and how many characters of the window's text have been.
        self._context = 0
        self._given = 0

    def push(self, token: int) -> str:
        """The text that this token completes, often none."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        whole = text.rstrip(_REPLACEMENT)
        piece = whole[self._given :]
        self._given = max(self._given, len(whole))
        if piece and len(whole) == len(text):
            # What has been given remains as context for the next: decoders treat a first token in their own way.
            self._window = self._window[self._context :]
            self._context = len(self._window)
            self._given = len(self._tokenizer.decode(self._window))
        return piece

    def flush(self) -> str:
        """What is left when no token follows, incomplete characters as U+FFFD."""
        piece = self._tokenizer.decode(self._window)[self._given :]
        self._window, self._context, self._given = [], 0, 0
        return piece
