"""One request as the engine works on it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from engine.sampling_params import SamplingParams
from engine.timing import Timing


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
        tokens: Prompt and output.
        num_prompt: Tokens of the prompt.
        seed: Of its random numbers, settled.
        block_table: Block `i` holds positions `i * block_size` and on. Appended to in place; any other change makes
            a new list, so that whoever has copied the first `n` entries of a list knows them to be right while the
            list is the same.
        num_computed: Tokens whose keys and values are in the cache, or will be after the step under way.
        prefilled: Whether a token has been sampled since the last admission; from then on it decodes.
        num_pending: Tokens that a step under way is sampling: 1 or, once they are in `tokens`, 0.
        max_len: Tokens that it may have in all; what the request asks for, or the model's context.
        stops: Tokens that end it.
        num_cached_prompt: Tokens that were in the prefix cache when it was first admitted.
        logprobs: Of each output token, where the request asks for them.
        watch: Looks at the tokens after each new one, and says whether they end the request.
        siblings: Sequences that go on from its prompt once it has been computed, with `n` outputs for one prompt.
        error: In a sentence, why it could not go on.
        num_published: Full blocks that are in the prefix cache, and `chain` the last of them; the block manager's.
    """

    request_id: str
    tokens: list[int]
    num_prompt: int
    params: SamplingParams
    seed: int
    timing: Timing
    block_table: list[int] = field(default_factory=list)
    num_computed: int = 0
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
    siblings: list["Sequence"] = field(default_factory=list)

    def __post_init__(self) -> None:
        """What only the request says."""
        if self.max_len < 0:
            self.max_len = self.num_prompt + self.params.max_tokens
        self.stops |= frozenset(self.params.stop_token_ids)

    @property
    def output(self) -> list[int]:
        """The generated tokens."""
        return self.tokens[self.num_prompt :]

    @property
    def next_length(self) -> int:
        """Tokens that the next step computes up to, that of a step under way included."""
        return len(self.tokens) + self.num_pending

    @property
    def num_output(self) -> int:
        """How many tokens have been generated."""
        return len(self.tokens) - self.num_prompt
