"""The prompts of a run's requests."""

import random

from engine.bench.options import RunOptions, StreamingOptions

DEFAULT_PROMPT = "Hello"

Prompts = list[str] | list[list[int]]


def make_prompts(options: RunOptions, vocab_size: int, seed: int) -> Prompts:
    """One prompt a request: the texts that are given, taken in turn, or random token ids.

    Args:
        options: Which, and how many.
        vocab_size: Random ids are below.
        seed: Of random ids.
    """
    count = options.num_requests
    streaming = options if isinstance(options, StreamingOptions) else None
    repeats = streaming.prompt_repeats if streaming else (1,)
    each = [repeats[i % len(repeats)] for i in range(count)]
    if options.prompt_tokens is not None:
        rng = random.Random(seed)
        length = options.prompt_tokens
        return [[rng.randrange(vocab_size) for _ in range(length)] * times for times in each]
    texts = options.prompts or (DEFAULT_PROMPT if options.prompt is None else options.prompt,)
    prompts = [" ".join([texts[i % len(texts)]] * times) for i, times in enumerate(each)]
    if streaming and streaming.unique_prompts:
        # As many digits in each, so that lengths stay as they were among themselves; at the beginning, because
        # prompts share what they begin with.
        digits = len(str(count - 1))
        prompts = [f"{i:0{digits}d} {prompt}" for i, prompt in enumerate(prompts)]
    return prompts
