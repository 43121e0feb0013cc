"""How the tokens of one request are chosen, and when it ends."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import RequestError

# A seed is the key of a Philox generator.
MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_STOPS = 16
MAX_N = 64

# (name, least, most) of the numbers that have bounds of their own.
_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("min_p", 0.0, 1.0),
    ("presence_penalty", -100.0, 100.0),
    ("frequency_penalty", -100.0, 100.0),
)
_INTEGERS = ("max_tokens", "n", "top_k")
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class SamplingParams:
    """Of one request.

    What changes logits does so in this order, as in Hugging Face's `generate`: `logit_bias`, penalties, temperature,
    `top_k`, `top_p`, `min_p`.

    Attributes:
        max_tokens: The most tokens to generate; the model's context can end a request earlier.
        temperature: 0 takes the likeliest token; above, logits are divided by it and a token is drawn.
        seed: Of this request's random numbers, which depend on it and on the position in the output alone. None
            takes the engine's seed and the request's number.
        stop_token_ids: Tokens that end the request, besides the model's own end-of-text tokens.
        ignore_eos: Whether the model's end-of-text tokens are like any other token.
        n: How many outputs are drawn for one prompt; they share its blocks, and the first is what n=1 gives.
        top_k: Only so many of the likeliest tokens are drawn from, and those that tie with the last of them; 0 is all.
        top_p: Only the likeliest tokens, until their probabilities sum up to this; 1 is all.
        min_p: Only tokens with at least this share of the likeliest one's probability; 0 is all.
        repetition_penalty: Logits of tokens that the prompt or the output holds are divided by it where they are
            positive and multiplied where not; 1 is off.
        presence_penalty: What is taken from the logits of tokens that the output holds.
        frequency_penalty: The same, for each time that the output holds them.
        logit_bias: What is added to the logits of single tokens, by their ids; `-inf` rules one out.
        logprobs: Log-probabilities of each output token, by the model alone, and of so many of the likeliest.
        stop: Texts that end the request, wherever its output comes to hold one.
        include_stop: Whether the text that ended the request is left in its text.

    Raises:
        RequestError: A value is out of range.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    seed: int | None = None
    stop_token_ids: Iterable[int] = ()
    ignore_eos: bool = False
    n: int = 1
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] = ()
    logprobs: int | None = None
    stop: str | Iterable[str] = ()
    include_stop: bool = False

    def __post_init__(self) -> None:
        """Check values, and make tuples of what there may be several of."""
        self._check_kinds()
        self._check_ranges()
        self._check_drawing()
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "stop", _stops(self.stop))
        if self.include_stop and not self.stop:
            raise RequestError("include_stop is for stop; without such texts it would change nothing")

    def _check_kinds(self) -> None:
        if not isinstance(self.stop_token_ids, Iterable):
            raise RequestError(f"stop_token_ids must be several integers, but is {self.stop_token_ids!r}")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        integers = [(name, getattr(self, name)) for name in _INTEGERS]
        integers += [(name, getattr(self, name)) for name in ("seed", "logprobs") if getattr(self, name) is not None]
        for name, value in [*integers, *(("a stop token id", i) for i in self.stop_token_ids)]:
            if isinstance(value, bool) or not isinstance(value, int):
                raise RequestError(f"{name} must be an integer, but is {value!r}")
        for name in _NUMBERS:
            _check_number(name, getattr(self, name))

    def _check_ranges(self) -> None:
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, but is {self.max_tokens}")
        # Kernels read it as fp32.
        if not (self.temperature == 0 or 1e-5 <= self.temperature <= 1e5):
            raise RequestError(f"temperature must be 0 (greedy) or from 1e-5 to 1e5, but is {self.temperature}")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise RequestError(f"seed must be from 0 to 2**63 - 1, but is {self.seed}")
        if not 1e-3 <= self.repetition_penalty <= 1e3:
            raise RequestError(f"repetition_penalty must be from 1e-3 to 1e3, but is {self.repetition_penalty}")
        for name, least, most in _BOUNDS:
            if not least <= getattr(self, name) <= most:
                raise RequestError(f"{name} must be from {least:g} to {most:g}, but is {getattr(self, name)}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise RequestError(f"logprobs must be from 0 to {MAX_LOGPROBS}, but is {self.logprobs}")

    def _check_drawing(self) -> None:
        if not 1 <= self.n <= MAX_N:
            raise RequestError(f"n must be from 1 to {MAX_N}, but is {self.n}")
        if not 0 <= self.top_k < 2**31:
            raise RequestError(f"top_k must be 0 (off) or a number of tokens, but is {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be over 0 and at most 1, but is {self.top_p}")
        for name, off in (("n", 1), ("top_k", 0), ("top_p", 1), ("min_p", 0)):
            if getattr(self, name) != off and not self.temperature:
                raise RequestError(f"{name}={getattr(self, name)} needs a temperature above 0, since 0 draws nothing")

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """Tokens and what is added to their logits."""
        return tuple(self.logit_bias)  # type: ignore[arg-type]

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts that end the request."""
        return tuple(self.stop)

    @property
    def cuts(self) -> bool:
        """Whether only some tokens may be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def penalises(self) -> bool:
        """Whether tokens that occur are treated otherwise."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def asks(self) -> bool:
        """Whether logits need more than temperature."""
        return self.cuts or self.penalises or bool(self.logit_bias) or self.logprobs is not None


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequestError(f"{name} must be a number, but is {value!r}")


def _biases(given: Any) -> tuple[tuple[int, float], ...]:
    """Pairs of token and bias, checked, each token once."""
    try:
        pairs = [(token, bias) for token, bias in (given.items() if isinstance(given, Mapping) else given)]
    except (TypeError, ValueError):
        raise RequestError(f"logit_bias must map token ids to numbers, but is {given!r:.60}") from None
    for token, bias in pairs:
        if isinstance(token, bool) or not isinstance(token, int):
            raise RequestError(f"a token id of logit_bias must be an integer, but is {token!r}")
        _check_number(f"the logit_bias of token {token}", bias)
        if not (bias == -math.inf or abs(bias) <= 1e4):
            raise RequestError(f"the logit_bias of token {token} must be -inf or from -1e4 to 1e4, but is {bias}")
    if len(dict(pairs)) < len(pairs):
        raise RequestError("logit_bias names a token twice")
    if len(pairs) > MAX_BIASES:
        raise RequestError(f"logit_bias may name {MAX_BIASES} tokens, but names {len(pairs)}")
    return tuple(pairs)


def _stops(given: Any) -> tuple[str, ...]:
    """Texts, checked; one of them may come alone."""
    if not isinstance(given, Iterable):
        raise RequestError(f"stop must be a text or several, but is {given!r}")
    texts = (given,) if isinstance(given, str) else tuple(given)
    for text in texts:
        if not isinstance(text, str) or not text:
            raise RequestError(f"a stop must be a text that is not empty, but is {text!r}")
    if len(texts) > MAX_STOPS:
        raise RequestError(f"there may be {MAX_STOPS} stop texts, but there are {len(texts)}")
    return texts
