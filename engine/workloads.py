"""The engine as something to capture: programs with settings, a set-up and one step.

They have the form that tracetool looks for (`WORKLOADS`, each with `name`, `about`, `axes` and `start`); nothing of it
is imported here.
"""

import hashlib
import importlib.util
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from engine.errors import ConfigError
from engine.llm import LLM
from engine.models.families import FAMILIES
from engine.sampling_params import SamplingParams
from engine.variants.choice import AXES

if TYPE_CHECKING:
    from engine.core import EngineCore


class Session(Protocol):
    """A workload that has been set up."""

    def step(self) -> None:
        """One step."""
        ...

    def result(self) -> object:
        """What the steps came to, as JSON has it: equal for variants that did the same."""
        ...


@dataclass(frozen=True)
class Axis:
    """A setting: what it is about, what each value does (none listed: any text will do), and what it is by default."""

    about: str
    values: Mapping[str, str]
    default: str


@dataclass(frozen=True)
class Workload:
    """A program that can be captured; `preload` names modules that `start` needs and that take long to import."""

    name: str
    about: str
    axes: Mapping[str, Axis]
    start: Callable[[Mapping[str, str]], Session]
    eager: Callable[[Mapping[str, str]], Mapping[str, str] | None] | None = None
    preload: Sequence[str] = ()


def without_graphs(settings: Mapping[str, str]) -> Mapping[str, str] | None:
    """Settings of the engine for the same steps without CUDA graphs; None where there are none anyway."""
    return None if settings["cuda_graph"] == "off" else {**settings, "cuda_graph": "off", "graph_sampling": "outside"}


def _with_triton(*modules: str) -> tuple[str, ...]:
    return modules if importlib.util.find_spec("triton") else ()


_PRELOAD = (
    "transformers.models.auto.modeling_auto",
    *(f"transformers.models.{family}.configuration_{family}" for family in FAMILIES),
    # Its rotary embedding serves all families that have one.
    "transformers.models.llama.modeling_llama",
    *_with_triton("engine.ops.triton_ops", "kernels.kv_append", "kernels.paged_attention", "kernels.prefill_attention"),
)


def _text(about: str, default: object) -> Axis:
    return Axis(about, {}, str(default))


def _number(settings: Mapping[str, str], name: str) -> int:
    try:
        value = int(settings[name])
    except ValueError:
        value = 0
    if value < 1:
        raise ConfigError(f"{name} must be a number of at least 1, but is {settings[name]!r}")
    return value


_AUTO = {"auto": "the fastest that is right, for the device"}
_ENGINE_AXES = {
    name: Axis(axis.about, axis.values, "off")
    if name == "dense_mask"
    else Axis(axis.about, _AUTO | axis.values, "auto")
    for name, axis in AXES.items()
}
_MODEL_AXES = {
    "model": _text("a preset, or a checkpoint's folder or hub id", "gpt2"),
    "load_format": Axis(
        "where weights come from", {"dummy": "random weights", "auto": "the checkpoint's own"}, "dummy"
    ),
    "dtype": _text("of weights and cache: auto, float32, float16 or bfloat16", "auto"),
    "device": _text("auto, cpu or cuda", "auto"),
    "block_size": _text("positions a cache block", 16),
    "kv_append_min_batch": _text("the least batch for which kv_append's Triton forms are used", 0),
    "temperature": _text("0 is greedy", 0.0),
    "seed": _text("of weights, prompts and tokens", 0),
}


def _load(settings: Mapping[str, str], **more: Any) -> LLM:
    names = [*_ENGINE_AXES, "load_format", "dtype", "device", "block_size", "kv_append_min_batch", "seed"]
    options = {name: settings[name] for name in names} | more
    return LLM(settings["model"], **options)


def _params(settings: Mapping[str, str], max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens, temperature=float(settings["temperature"]), ignore_eos=True)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


# decode -----------------------------------------------------------------------------------------------------------

LENGTHS = {
    "equal": "all sequences stand at the same place in their blocks, and none enters a new one for a while",
    "ragged": "lengths differ by up to two blocks and three tokens, and none enters a new block for a while",
    "crossing": "lengths differ so that in every step a sequence enters a new block, while there are sequences",
}


def lengths_of(kind: str, batch: int, context: int, block_size: int) -> list[int]:
    """Tokens that each sequence has when the first step begins, about `context`.

    A step computes the last token's keys and values, so a sequence of `k * block_size + 1` tokens enters a new block.
    """
    first = max(2, context // block_size) * block_size + 2
    if kind == "equal":
        return [first] * batch
    if kind == "ragged":
        return [first + (i % 3 - 1) * block_size + i % 4 for i in range(batch)]
    return [first - 1 - i % block_size for i in range(batch)]


class Decode:
    """A batch that decodes and neither gains nor loses a sequence."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        batch, context = _number(settings, "batch_size"), _number(settings, "context")
        block_size = _number(settings, "block_size")
        lengths = lengths_of(settings["lengths"], batch, context, block_size)
        self._llm = _load(settings, max_num_seqs=batch, prefix_cache=False, max_num_batched_tokens=sum(lengths))
        core, rng = self._llm.core, random.Random(int(settings["seed"]))
        longest, vocab = core.runner.max_model_len, core.runner.spec.vocab_size
        if max(lengths) + 1 > longest:
            raise ConfigError(f"context {context} leaves no room to decode in the model's {longest} positions")
        self._seqs = [
            # The first token of the output comes with the prefill.
            core.add([rng.randrange(vocab) for _ in range(length - 1)], _params(settings, longest))
            for length in lengths
        ]
        while not all(seq.prefilled for seq in self._seqs):
            core.step()

    def step(self) -> None:
        """A token for each sequence."""
        if not all(seq.finish_reason is None for seq in self._seqs):
            raise ConfigError(
                "a sequence has come to the end of the model's context; run fewer steps, or lower context"
            )
        self._llm.core.step()

    def result(self) -> object:
        """The tokens of all, those of a step under way too."""
        self._llm.core.settle()
        return {"tokens": _digest([seq.output for seq in self._seqs]), "length": len(self._seqs[0].output)}


# serve ------------------------------------------------------------------------------------------------------------


class Serve:
    """Requests that come as others end: each step decodes, and many prefill too."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        batch = _number(settings, "batch_size")
        self._settings = settings
        self._prompt, self._new = _number(settings, "prompt_tokens"), _number(settings, "new_tokens")
        self._llm = _load(settings, max_num_seqs=batch, prefix_cache=False)
        self._rng = random.Random(int(settings["seed"]))
        self._outputs: list[list[int]] = []
        # Begun one after another, so that they end one after another.
        every = max(1, self._new // batch)
        for _ in range(batch):
            self._arrive()
            for _ in range(every):
                self.step()

    def _arrive(self) -> None:
        core: EngineCore = self._llm.core
        vocab = core.runner.spec.vocab_size
        prompt = [self._rng.randrange(vocab) for _ in range(self._prompt)]
        core.add(prompt, _params(self._settings, self._new))

    def step(self) -> None:
        """A step of the engine; for each request that ends in it, one arrives."""
        for seq in self._llm.core.step():
            if seq.finish_reason is not None:
                self._outputs.append(seq.output)
                self._arrive()

    def result(self) -> object:
        """The tokens of the requests that ended."""
        return {"tokens": _digest(self._outputs), "requests": len(self._outputs)}


# The kernels of seeds 003 and 004 ---------------------------------------------------------------------------------


class KVAppend:
    """One layer's append by itself: the micro-benchmark of seed 003."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        from engine.bench.kv_append import Sizes, make_calls  # noqa: PLC0415 - needs triton

        sizes = Sizes(
            _number(settings, "heads"),
            _number(settings, "head_dim"),
            _number(settings, "block_size"),
            settings["dtype"],
        )
        form, build = settings["form"], settings["index"] == "built"
        calls, self._caches = make_calls((form,), _number(settings, "batch_size"), sizes, _device(), build_index=build)
        self._call = calls[form]

    def step(self) -> None:
        """One append."""
        self._call()

    def result(self) -> object:
        """What the caches hold."""
        return _digest([_sum_of(cache) for cache in self._caches])


class InverseRope:
    """The fused inverse RoPE and FP8 quantisation of seed 004, on a number of tokens that may change each step."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._specialize = settings["specialize"]
        self._heads = _number(settings, "heads")
        most = _number(settings, "tokens")
        rng = random.Random(int(settings["seed"]))
        self._counts = rng.sample(range(1, most + 1), most) if settings["shapes"] == "new" else [most]
        generator = torch.Generator(_device()).manual_seed(int(settings["seed"]))
        self._o = torch.randn(most, self._heads, 512, generator=generator, device=_device(), dtype=torch.bfloat16)
        self._positions = torch.arange(most, device=_device())
        self._cos_sin = torch.randn(most, 64, generator=generator, device=_device())
        self._step = 0

    def step(self) -> None:
        """One call."""
        from kernels.inverse_rope_fp8 import inverse_rope_fp8  # noqa: PLC0415 - needs triton

        count = self._counts[self._step % len(self._counts)]
        self._step += 1
        inverse_rope_fp8(
            self._o[:count],
            self._positions[:count],
            self._cos_sin,
            max(1, self._heads // 8),
            specialize=self._specialize,
        )

    def result(self) -> object:
        """How many calls there were."""
        return self._step


def _device() -> torch.device:
    if not torch.cuda.is_available():
        raise ConfigError("this workload launches kernels alone, and torch finds no GPU here")
    return torch.device("cuda")


def _sum_of(tensor: Tensor) -> float:
    return float(tensor.double().sum())


_SPECIALIZE = Axis(
    "which integers the kernel is compiled anew for",
    {
        "default": "as Triton does by itself: for 1 and for multiples of 16 of every integer",
        "num_tokens": "not for the number of tokens, as the pull request has it",
        "complete": "for none, strides that follow the number of tokens among them",
    },
    "default",
)
_FP8_AXES = {
    "specialize": _SPECIALIZE,
    "heads": _text("heads of 512", 64),
    "seed": _text("of values, and of the order of numbers of tokens", 0),
}

WORKLOADS = [
    Workload(
        "decode",
        "a batch of sequences that decode, a token each a step",
        {
            **_ENGINE_AXES,
            "batch_size": _text("sequences", 8),
            "context": _text("tokens of each, about", 64),
            "lengths": Axis("how lengths differ", LENGTHS, "equal"),
            **_MODEL_AXES,
        },
        Decode,
        without_graphs,
        _PRELOAD,
    ),
    Workload(
        "serve",
        "requests that arrive as others end: prefill and decode mixed",
        {
            **_ENGINE_AXES,
            "batch_size": _text("requests at a time", 8),
            "prompt_tokens": _text("of each request", 64),
            "new_tokens": _text("of each request", 32),
            **_MODEL_AXES,
        },
        Serve,
        without_graphs,
        _PRELOAD,
    ),
    Workload(
        "prefill_shapes",
        "seed 004's fused kernel on numbers of tokens that never come twice, as prefills have them",
        {
            **_FP8_AXES,
            "tokens": _text("the most; each number up to it comes once, in random order", 4096),
            "shapes": Axis("whether numbers repeat", {"new": "each comes once"}, "new"),
        },
        InverseRope,
        preload=_with_triton("kernels.inverse_rope_fp8"),
    ),
    Workload(
        "inverse_rope_fp8",
        "seed 004's fused kernel on one number of tokens, again and again",
        {
            **_FP8_AXES,
            "tokens": _text("of each call", 4096),
            "shapes": Axis("whether numbers repeat", {"same": "the same each time"}, "same"),
        },
        InverseRope,
        preload=_with_triton("kernels.inverse_rope_fp8"),
    ),
    Workload(
        "kv_append",
        "one layer's KV append by itself, once a step: the micro-benchmark of seed 003",
        {
            "form": Axis(
                "how keys and values are written",
                {name: about for name, about in AXES["kv_append"].values.items() if name != "fused"},
                "torch_indexed",
            ),
            "index": Axis(
                "where index tensors come from",
                {"made": "made once", "built": "built from lists in each step, as in the engine"},
                "built",
            ),
            "batch_size": _text("sequences", 256),
            "heads": _text("KV heads", 12),
            "head_dim": _text("of each head", 64),
            "block_size": _text("positions a block", 64),
            "dtype": _text("float32, float16 or bfloat16", "bfloat16"),
        },
        KVAppend,
        preload=_with_triton("engine.bench.kv_append"),
    ),
]
