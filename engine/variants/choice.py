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
CUDA_GRAPH = {
    "off": "each operation of a step is launched by itself",
    "exact": "one launch a step: a CUDA graph for every batch size up to max_num_seqs",
    "buckets": "one launch a step: CUDA graphs for some batch sizes, smaller batches filled up with rows of nobody",
}
GRAPH_SAMPLING = {
    "outside": "sampling is launched after the graph, or there is none",
    "inside": "the graph samples, and leaves tokens and positions for the next step to find",
}
OVERLAP = {
    "off": "before the next step is launched",
    "on": "while the next step runs: what has ended is known a step late",
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
    cuda_graph: str
    graph_sampling: str
    overlap: str


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
            (BLOCK_TABLES, "resident", "in_graph"),
            (INPUTS, "on_device", "on_device"),
            (KV_APPENDS, "slot_mapping", "fused"),
            (ATTENTION, "reference", "triton"),
            (SAMPLERS, "batched", "on_device"),
        )
    },
    "dense_mask": Axis("whether a dense mask is built as well", DENSE_MASK, "off", "off"),
    "attention_launch": Axis("how the attention kernel's launch parameters are chosen", LAUNCHES, "fixed", "fixed"),
    "ops": Axis("small operations as torch calls or as kernels", OPS, "torch", "triton"),
    "cuda_graph": Axis("whether decode steps are launched as one", CUDA_GRAPH, "off", "buckets"),
    "graph_sampling": Axis("whether the graph of a step samples as well", GRAPH_SAMPLING, "outside", "inside"),
    "overlap": Axis("when the host looks at what a step has sampled", OVERLAP, "off", "on"),
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
# The values that are CUDA graphs.
NEEDS_GPU = {("cuda_graph", "exact"), ("cuda_graph", "buckets"), ("graph_sampling", "inside")}
# What decoding that stays on the device does not go with; the first value of each is what it needs.
_ON_DEVICE = {
    "inputs": ("on_device",),
    "sampler": ("on_device",),
    "kv_append": ("fused", "slot_mapping"),
    "dense_mask": ("off",),
}
_HOST_INDEXED = ("torch_indexed", "triton", "triton_identity_pos", "triton_full_batch")
_GATED = ("triton", "triton_identity_pos", "triton_full_batch")


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on"}


def block_size_fits(config: EngineConfig) -> bool:
    """Whether attention's kernels can have blocks of this size."""
    return 16 <= config.block_size <= 256 and config.block_size & (config.block_size - 1) == 0


def head_dim_fits(spec: ModelSpec) -> bool:
    """Whether attention's kernels can have heads of this width."""
    return 64 <= spec.head_dim <= 256 and spec.head_dim % 8 == 0


@dataclass(frozen=True)
class _Case:
    """Everything that a rule may ask about."""

    config: EngineConfig
    spec: ModelSpec
    chosen: Variants
    device: torch.device
    dtype: torch.dtype
    simulated: bool

    @property
    def kernels(self) -> list[str]:
        """Chosen values that are kernels, as `axis='value'`."""
        pairs = [(option.name, getattr(self.chosen, option.name)) for option in fields(self.chosen)]
        return [f"{axis}={value!r}" for axis, value in pairs if (axis, value) in NEEDS_TRITON]

    @property
    def block_size_fits(self) -> bool:
        return block_size_fits(self.config)

    @property
    def head_dim_fits(self) -> bool:
        return head_dim_fits(self.spec)


# (when it is broken, what to say): everything that cannot be combined. The first that is broken is reported.
RULES: tuple[tuple[Callable[[_Case], bool], Callable[[_Case], str]], ...] = (
    *(
        (
            lambda c, axis=axis, fits=fits: c.chosen.block_tables == "in_graph" and getattr(c.chosen, axis) not in fits,
            lambda c, axis=axis, fits=fits: (
                f"block_tables='in_graph' cannot have {axis}={getattr(c.chosen, axis)!r}, which needs the host in "
                f"every step; {axis}={fits[0]!r} is what fits it"
            ),
        )
        for axis, fits in _ON_DEVICE.items()
    ),
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
        lambda c: c.chosen.overlap == "on" and c.chosen.block_tables != "in_graph",
        lambda c: (
            f"overlap='on' needs block_tables='in_graph': with {c.chosen.block_tables!r} the host must know a step's "
            "tokens before it can launch the next"
        ),
    ),
    (
        lambda c: c.chosen.cuda_graph != "off" and c.device.type != "cuda" and not c.simulated,
        lambda c: f"cuda_graph={c.chosen.cuda_graph!r} needs a GPU; cuda_graph='off' runs the same steps on a CPU",
    ),
    (
        lambda c: c.chosen.cuda_graph != "off" and c.chosen.attention_backend == "hf",
        lambda c: (
            f"cuda_graph={c.chosen.cuda_graph!r} cannot have attention_backend='hf': what transformers' code does in a "
            "step may depend on values that a recording does not look at"
        ),
    ),
    (
        lambda c: c.chosen.cuda_graph != "off" and c.chosen.kv_append in _HOST_INDEXED,
        lambda c: (
            f"cuda_graph={c.chosen.cuda_graph!r} cannot have kv_append={c.chosen.kv_append!r}, whose index tensors the "
            "host builds in each step; kv_append='fused' or 'slot_mapping' can be captured"
        ),
    ),
    (
        lambda c: c.chosen.graph_sampling == "inside" and c.chosen.cuda_graph == "off",
        lambda _: "graph_sampling='inside' needs cuda_graph='exact' or 'buckets': there is no graph to sample in",
    ),
    (
        lambda c: c.chosen.graph_sampling == "inside" and c.chosen.block_tables != "in_graph",
        lambda c: (
            "graph_sampling='inside' needs block_tables='in_graph', which has sampling's parameters on the device; "
            f"{c.chosen.block_tables!r} has not"
        ),
    ),
    (
        lambda c: not c.spec.gated and c.spec.activation not in GELUS,
        lambda c: f"the model's activation {c.spec.activation!r} is not built; there are {', '.join(GELUS)}",
    ),
)


def choose(
    config: EngineConfig, spec: ModelSpec, device: torch.device, dtype: torch.dtype, *, simulated: bool = False
) -> Variants:
    """Settle every axis: what the config asks for, and for `auto` the fastest that fits what it asks for.

    Args:
        config: What is asked for.
        spec: Of the model.
        device: Where it runs.
        dtype: Of weights and cache.
        simulated: Whether something stands in for CUDA graphs on a CPU.

    Raises:
        ConfigError: There is no such value, or the values do not fit each other, the model or the machine.
    """
    asked = {name: getattr(config, name) for name in AXES}
    for name, value in asked.items():
        if value != "auto" and value not in AXES[name].values:
            raise ConfigError(unknown(f"value of {name}", value, AXES[name].values))
    on_gpu = device.type == "cuda" and dtype != torch.float64
    defaults = {name: axis.cuda if on_gpu else axis.cpu for name, axis in AXES.items()}
    case = _Case(config, spec, Variants(**defaults), device, dtype, simulated)
    if not (case.head_dim_fits and case.block_size_fits):
        defaults["attention_backend"] = "reference"
    _follow(defaults, asked)
    chosen = {name: defaults[name] if value == "auto" else value for name, value in asked.items()}
    case = dataclasses.replace(case, chosen=Variants(**chosen))
    for broken, sentence in RULES:
        if broken(case):
            raise ConfigError(sentence(case))
    return case.chosen


def _follow(defaults: dict[str, str], asked: dict[str, str]) -> None:
    """Change defaults so that they fit what is asked for."""

    def settled(name: str) -> str:
        return defaults[name] if asked[name] == "auto" else asked[name]

    if asked["sampler"] == "item_loop":
        defaults["inputs"] = "packed_pinned"
    if asked["overlap"] == "on" or asked["graph_sampling"] == "inside":
        defaults["block_tables"] = "in_graph"
    elif any(asked[axis] not in {"auto", *fits} for axis, fits in _ON_DEVICE.items()):
        defaults["block_tables"] = "resident"
    # Reference attention that is captured computes as many positions as a sequence may ever have.
    if settled("attention_backend") in {"reference", "hf"} or settled("kv_append") in _HOST_INDEXED:
        defaults["cuda_graph"] = "off"
    if asked["graph_sampling"] == "inside" and defaults["cuda_graph"] == "off":
        defaults["cuda_graph"] = "buckets"
    if settled("block_tables") == "in_graph":
        defaults |= {"inputs": "on_device", "sampler": "on_device"}
    else:
        defaults |= {"overlap": "off", "graph_sampling": "outside"}
    if settled("cuda_graph") == "off":
        defaults["graph_sampling"] = "outside"
