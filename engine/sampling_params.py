"""How the tokens of one request are chosen, and when it ends."""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.errors import RequestError

# A seed is the key of a Philox generator.
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class SamplingParams:
    """Of one request.

    Attributes:
        max_tokens: The most tokens to generate; the model's context can end a request earlier.
        temperature: 0 takes the likeliest token; above, logits are divided by it and a token is drawn.
        seed: Of this request's random numbers, which depend on it and on the position in the output alone. None
            takes the engine's seed and the request's number.
        stop_token_ids: Tokens that end the request, besides the model's own end-of-text tokens.
        ignore_eos: Whether the model's end-of-text tokens are like any other token.

    Raises:
        RequestError: A value is out of range.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    seed: int | None = None
    stop_token_ids: Iterable[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Check values, and make a tuple of the stop ids."""
        if not isinstance(self.stop_token_ids, Iterable):
            raise RequestError(f"stop_token_ids must be several integers, but is {self.stop_token_ids!r}")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        integers = [("max_tokens", self.max_tokens), *(("a stop token id", i) for i in self.stop_token_ids)]
        for name, value in integers + ([] if self.seed is None else [("seed", self.seed)]):
            if isinstance(value, bool) or not isinstance(value, int):
                raise RequestError(f"{name} must be an integer, but is {value!r}")
        if isinstance(self.temperature, bool) or not isinstance(self.temperature, (int, float)):
            raise RequestError(f"temperature must be a number, but is {self.temperature!r}")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, but is {self.max_tokens}")
        # Kernels read it as fp32.
        if not (self.temperature == 0 or 1e-5 <= self.temperature <= 1e5):
            raise RequestError(f"temperature must be 0 (greedy) or from 1e-5 to 1e5, but is {self.temperature}")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise RequestError(f"seed must be from 0 to 2**63 - 1, but is {self.seed}")
