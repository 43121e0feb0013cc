"""One request as the engine works on it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from engine.sampling_params import SamplingParams
from engine.timing import Timing

if TYPE_CHECKING:
    from engine.backlog import Backlog


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # the model's end of text, or one of the request's stop ids
    LENGTH = "length"  # max_tokens, or the end of the context
    ABORT = "abort"
    ERROR = "error"  # it could not go on; others did


@dataclass(frozen=True)
class TokenLogprob:
    """What the model alone, before biases, penalties and temperature, thought of an output token.

    Attributes:
        logprob: Natural logarithm of the token's probability.
        top: The likeliest tokens and theirs, likeliest first.
    """

    token_id: int
    logprob: float
    top: dict[int, float]


@dataclass(eq=False)
class Sequence:
    """The tokens of one request, and what of them is in the cache.

    Attributes:
        given: Prompt and output, as far as the output has been given out; `tokens` has all of it.
        num_prompt: Tokens of the prompt.
        seed: Of its random numbers, settled.
        block_table: Block `i` holds positions `i * block_size` and on. Appended to in place; any other change makes
            a new list, so that whoever has copied the first `n` entries of a list knows them to be right while the
            list is the same.
        computed: Of `given`, tokens whose keys and values are in the cache; `num_computed` counts all.
        prefilled: Whether a token has been sampled since the last admission; from then on it decodes.
        num_pending: Tokens that a step under way is sampling: 1 or, once they are in `tokens`, 0.
        max_len: Tokens that it may have in all; what the request asks for, or the model's context.
        stops: Tokens that end it.
        num_cached_prompt: Tokens that were in the prefix cache when it was first admitted.
        logprobs: Of each output token, where the request asks for them.
        watch: Looks at the tokens after each new one, and says whether they end the request.
        backlog: Steps whose tokens it has not been given.
        siblings: Sequences that go on from its prompt once it has been computed, with `n` outputs for one prompt.
        error: In a sentence, why it could not go on.
        num_published: Full blocks that are in the prefix cache, and `chain` the last of them; the block manager's.
    """

    request_id: str
    given: list[int]
    num_prompt: int
    params: SamplingParams
    seed: int
    timing: Timing
    block_table: list[int] = field(default_factory=list)
    computed: int = 0
    prefilled: bool = False
    num_published: int = 0
    chain: int = 0
    num_cached_prompt: int = 0
    num_preemptions: int = 0
    num_pending: int = 0
    max_len: int = -1
    stops: frozenset[int] = frozenset()
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    error: str | None = None
    watch: Callable[[], bool] | None = None
    backlog: "Backlog | None" = None
    siblings: list["Sequence"] = field(default_factory=list)

    def __post_init__(self) -> None:
        """What only the request says."""
        if self.max_len < 0:
            self.max_len = self.num_prompt + self.params.max_tokens
        self.stops |= frozenset(self.params.stop_token_ids)

    @property
    def tokens(self) -> list[int]:
        """Prompt and output."""
        if self.backlog is not None:
            self.backlog.give_out()
        return self.given

    @property
    def num_tokens(self) -> int:
        """How many `tokens` there are, without having them given out."""
        return len(self.given) + (0 if self.backlog is None else self.backlog.num_steps)

    @property
    def num_computed(self) -> int:
        """Tokens whose keys and values are in the cache, or will be after the step under way."""
        return self.computed + (0 if self.backlog is None else self.backlog.num_steps)

    @property
    def output(self) -> list[int]:
        """The generated tokens."""
        return self.tokens[self.num_prompt :]

    @property
    def next_length(self) -> int:
        """Tokens that the next step computes up to, that of a step under way included."""
        return self.num_tokens + self.num_pending

    @property
    def num_output(self) -> int:
        """How many tokens have been generated."""
        return self.num_tokens - self.num_prompt
