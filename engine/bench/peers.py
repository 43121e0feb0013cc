"""Hugging Face's own generate on the same requests, in the same process.

A peer has the same config, dtype and device, and from a checkpoint the same weights. Prompts are padded on the left
and served in batches of the engine's greatest, greedily, without turning tokens into text. Requests that go on after
the end of text do so here by having none, which spares the peer a look at every token.
"""

import importlib
import time
from typing import TYPE_CHECKING, Any

import torch

from engine.bench.results import PeerRuns
from engine.errors import ConfigError
from engine.loading import find_model

if TYPE_CHECKING:
    from engine.bench.options import SchedulerOptions
    from engine.bench.workload import Prompts
    from engine.llm import LLM

# What each asks of `generate`.
_EXTRA: dict[str, dict[str, str]] = {"hf-dynamic": {}, "hf-static": {"cache_implementation": "static"}}


class HFPeers:
    """One Hugging Face model, and the ways in which it is asked to generate.

    Args:
        options: Whom to run, and with which requests.
        llm: The engine to be compared with; its tokenizer is the peers' too.

    Raises:
        ConfigError: The model does not fit beside the engine.
    """

    def __init__(self, options: "SchedulerOptions", llm: "LLM") -> None:
        keys = llm.core.runner.cache.keys
        self._device = keys.device
        self._encode = llm.tokenizer.encode
        self._batch = llm.config.max_num_seqs
        self._new_tokens = options.max_new_tokens
        self._context = llm.core.runner.spec.max_positions
        self._eos = set() if options.no_stop_on_eos else set(llm.core.runner.spec.eos_token_ids)
        transformers = _transformers()
        try:
            self._model = _load(options.model, llm.config.load_format, keys.dtype, keys.device)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                "the GPU's memory does not hold Hugging Face's model beside the engine; lower "
                "--set gpu_memory_utilization"
            ) from error
        # A checkpoint's own generation config can ask for more work, such as a repetition penalty.
        self._model.generation_config = transformers.GenerationConfig(
            eos_token_id=sorted(self._eos) or None, pad_token_id=0
        )

    def run(self, name: str, prompts: "Prompts") -> tuple[int, float]:
        """Serve all requests.

        Args:
            name: Of the peer.
            prompts: Texts, which are tokenised on the clock, or token ids.

        Returns:
            How many tokens were generated, up to each request's end of text, and in how many seconds.

        Raises:
            ConfigError: A request does not fit the model's context, or the GPU's memory.
        """
        self._wait()
        start = time.perf_counter()
        token_ids = [self._encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        longest = max(map(len, token_ids))
        if longest + self._new_tokens > self._context:
            raise ConfigError(
                f"--against needs prompts and new tokens to fit the model's context of {self._context}, but there are "
                f"up to {longest} and {self._new_tokens}; lower --max-new-tokens"
            )
        outputs: list[list[int]] = []
        try:
            for first in range(0, len(token_ids), self._batch):
                outputs += self._generate(token_ids[first : first + self._batch], _EXTRA[name])
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{name} ran out of the GPU's memory beside the engine; lower --set gpu_memory_utilization or "
                "--max-batch-size"
            ) from error
        self._wait()
        seconds = time.perf_counter() - start
        return sum(map(self._count, outputs)), seconds

    def warmed_up(self, name: str) -> PeerRuns:
        """A peer's empty runs, once it has run.

        Raises:
            ConfigError: Its decoding should have been compiled and was not.
        """
        # `generate` makes this attribute when it decides to compile (transformers 5.17, `get_compiled_call`).
        static = bool(_EXTRA[name])
        compiled = static and hasattr(self._model, "_compiled_call")
        if static and self._device.type == "cuda" and not compiled:
            raise ConfigError(f"{name}: this version of transformers did not compile; leave it out of --against")
        return PeerRuns(name, compiled)

    def _generate(self, prompts: list[list[int]], extra: dict[str, str]) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = self._model.generate(
            ids.to(self._device),
            attention_mask=mask.to(self._device),
            max_new_tokens=self._new_tokens,
            do_sample=False,
            use_cache=True,
            **extra,
        )
        rows: list[list[int]] = out[:, width:].tolist()
        return rows

    def _count(self, tokens: list[int]) -> int:
        end = next((i for i, token in enumerate(tokens) if token in self._eos), len(tokens) - 1)
        return end + 1

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def graphs_compiled() -> int:
    """How many graphs torch has compiled in this process so far."""
    from torch._dynamo.utils import counters  # noqa: PLC0415 - seconds, and only where something may be compiled

    return int(counters["stats"]["unique_graphs"])


def _transformers() -> Any:
    """The package, which takes seconds to import, and says nothing of its own from here on."""
    transformers: Any = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _load(name: str, load_format: str, dtype: torch.dtype, device: torch.device) -> Any:
    transformers = _transformers()
    found = find_model(name, load_format)
    if found.folder is None or load_format == "dummy":
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(found.config, dtype=dtype)
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(found.folder, dtype=dtype)
    return model.to(device).eval()
