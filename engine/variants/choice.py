"""Which value each axis has in an engine, and which combinations there can be."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from engine.config import EngineConfig
from engine.errors import ConfigError, unknown
from engine.models.spec import ModelSpec
from engine.ops.torch_ops import GELUS
from engine.variants.attention import ATTENTION, LAUNCHES
from engine.variants.block_tables import BLOCK_TABLES
from engine.variants.inputs import INPUTS
from engine.variants.kv_append import KV_APPENDS
from engine.variants.sampler import SAMPLERS

OPS = {
    "torch": "torch calls, several launches for a norm, an activation or a rotation",
    "triton": "one kernel each, in Triton",
}
DENSE_MASK = {
    "off": "no mask: attention reads lengths",
    "on": "the mask of ones that the seeds' engine builds each step and paged attention does not read (seed 001)",
}


@dataclass(frozen=True)
class Variants:
    """A value for every axis, none of them `auto`."""

    block_tables: str
    dense_mask: str
    inputs: str
    kv_append: str
    attention_backend: str
    attention_launch: str
    ops: str
    sampler: str


@dataclass(frozen=True)
class Axis:
    """An axis, its values with what each does, and the defaults on either kind of device."""

    about: str
    values: dict[str, str]
    cpu: str
    cuda: str


AXES: dict[str, Axis] = {
    **{
        registry.axis: Axis(registry.about, {name: registry.describe(name) for name in registry.names}, cpu, cuda)
        for registry, cpu, cuda in (
            (BLOCK_TABLES, "resident", "resident"),
            (INPUTS, "on_device", "on_device"),
            (KV_APPENDS, "slot_mapping", "fused"),
            (ATTENTION, "reference", "triton"),
            (SAMPLERS, "batched", "batched"),
        )
    },
    "dense_mask": Axis("whether a dense mask is built as well", DENSE_MASK, "off", "off"),
    "attention_launch": Axis("how the attention kernel's launch parameters are chosen", LAUNCHES, "fixed", "fixed"),
    "ops": Axis("small operations as torch calls or as kernels", OPS, "torch", "triton"),
}

# The values that are Triton kernels.
NEEDS_TRITON = {
    ("attention_backend", "triton"),
    ("attention_launch", "autotune"),
    ("ops", "triton"),
    ("kv_append", "triton"),
    ("kv_append", "triton_identity_pos"),
    ("kv_append", "triton_full_batch"),
}
_GATED = ("triton", "triton_identity_pos", "triton_full_batch")


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on"}


@dataclass(frozen=True)
class _Case:
    """Everything that a rule may ask about."""

    config: EngineConfig
    spec: ModelSpec
    chosen: Variants
    device: torch.device
    dtype: torch.dtype

    @property
    def kernels(self) -> list[str]:
        """Chosen values that are kernels, as `axis='value'`."""
        pairs = [(option.name, getattr(self.chosen, option.name)) for option in fields(self.chosen)]
        return [f"{axis}={value!r}" for axis, value in pairs if (axis, value) in NEEDS_TRITON]

    @property
    def block_size_fits(self) -> bool:
        size = self.config.block_size
        return 16 <= size <= 256 and size & (size - 1) == 0

    @property
    def head_dim_fits(self) -> bool:
        return 64 <= self.spec.head_dim <= 256 and self.spec.head_dim % 8 == 0


# (when it is broken, what to say): everything that cannot be combined. The first that is broken is reported.
RULES: tuple[tuple[Callable[[_Case], bool], Callable[[_Case], str]], ...] = (
    (
        lambda c: bool(c.kernels) and c.device.type != "cuda" and not interpreted(),
        lambda c: f"{c.kernels[0]} needs a GPU (or TRITON_INTERPRET=1, which is slow)",
    ),
    (
        lambda c: bool(c.kernels) and c.dtype == torch.float64,
        lambda c: f"{c.kernels[0]} cannot have dtype='float64': the kernels know float32, float16 and bfloat16",
    ),
    (
        lambda c: bool(c.kernels) and c.device.type != "cuda" and c.dtype == torch.bfloat16,
        lambda c: f"{c.kernels[0]} cannot have dtype='bfloat16' in Triton's interpreter, which computes it wrong",
    ),
    (
        lambda c: c.chosen.attention_launch == "autotune" and c.device.type != "cuda",
        lambda _: "attention_launch='autotune' needs a GPU: there is nothing to time in the interpreter",
    ),
    (
        lambda c: c.chosen.attention_launch == "autotune" and c.chosen.attention_backend != "triton",
        lambda c: (
            f"attention_launch='autotune' needs attention_backend='triton': {c.chosen.attention_backend!r} launches no "
            "kernel of ours"
        ),
    ),
    (
        lambda c: c.chosen.attention_backend == "triton" and not c.block_size_fits,
        lambda c: (
            f"attention_backend='triton' needs block_size 16, 32, 64, 128 or 256, but it is {c.config.block_size}"
        ),
    ),
    (
        lambda c: c.chosen.ops == "triton" and c.config.block_size & (c.config.block_size - 1) != 0,
        lambda c: f"ops='triton' needs block_size to be a power of two, but it is {c.config.block_size}",
    ),
    (
        lambda c: c.chosen.attention_backend == "triton" and not c.head_dim_fits,
        lambda c: (
            "attention_backend='triton' needs a head_dim that is a multiple of 8 from 64 to 256, but the model's is "
            f"{c.spec.head_dim}; attention_backend='reference' runs it"
        ),
    ),
    (
        lambda c: c.config.kv_append_min_batch > 0 and c.chosen.kv_append not in _GATED,
        lambda c: f"kv_append_min_batch is for kv_append {', '.join(_GATED)}; {c.chosen.kv_append!r} has none",
    ),
    (
        lambda c: c.chosen.inputs == "on_device" and c.chosen.sampler == "item_loop",
        lambda _: "inputs='on_device' cannot have sampler='item_loop', which leaves no batch of tokens on the device",
    ),
    (
        lambda c: not c.spec.gated and c.spec.activation not in GELUS,
        lambda c: f"the model's activation {c.spec.activation!r} is not built; there are {', '.join(GELUS)}",
    ),
)


def choose(config: EngineConfig, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Variants:
    """Settle every axis: what the config asks for, and for `auto` the fastest that fits what it asks for.

    Raises:
        ConfigError: There is no such value, or the values do not fit each other, the model or the machine.
    """
    asked = {name: getattr(config, name) for name in AXES}
    for name, value in asked.items():
        if value != "auto" and value not in AXES[name].values:
            raise ConfigError(unknown(f"value of {name}", value, AXES[name].values))
    on_gpu = device.type == "cuda" and dtype != torch.float64
    defaults = {name: axis.cuda if on_gpu else axis.cpu for name, axis in AXES.items()}
    if asked["sampler"] == "item_loop":
        defaults["inputs"] = "packed_pinned"
    case = _Case(config, spec, Variants(**defaults), device, dtype)
    if not (case.head_dim_fits and case.block_size_fits):
        defaults["attention_backend"] = "reference"
    chosen = {name: defaults[name] if value == "auto" else value for name, value in asked.items()}
    case = dataclasses.replace(case, chosen=Variants(**chosen))
    for broken, sentence in RULES:
        if broken(case):
            raise ConfigError(sentence(case))
    return case.chosen
