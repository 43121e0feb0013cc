"""From a model's name and options to a running core: everything that reads files or measures the machine."""

import functools
import gc
import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import ConfigError, ModelError
from engine.graphs import CudaCapture
from engine.kv_cache import KVCache
from engine.machine import Machine
from engine.models.checkpoint import Checkpoint, find_checkpoint, read_config, read_eos
from engine.models.decoder import Decoder
from engine.models.families import read_spec, rotary_table
from engine.models.hf_model import HFModel, load_hf, outline
from engine.models.presets import PRESETS, preset_config
from engine.models.random_weights import RandomWeights
from engine.models.spec import ModelSpec
from engine.models.weights import build_weights
from engine.ops.interface import Ops
from engine.ops.torch_ops import TorchOps
from engine.runner import Runner
from engine.stream import stream_of
from engine.variants.attention import AttentionBackend, HFAttention, ReferenceAttention, TritonAttention
from engine.variants.choice import Variants, block_size_fits, choose, head_dim_fits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_log = logging.getLogger(__name__)

# What a cache on a CPU takes at most, when nobody says how many blocks it has.
CPU_CACHE_BYTES = 2**30
# Slots are 32-bit integers.
_MAX_SLOTS = 2**31 - 1
# A cache that memory did not hold is tried again with this share of its blocks.
_SMALLER = 0.9


@dataclass(frozen=True)
class Found:
    """A model before its weights are read: its config, the folder that it is in (presets have none), and its spec."""

    config: "PreTrainedConfig"
    folder: Path | None
    spec: ModelSpec


def check_name_clash() -> None:
    """Hugging Face's `kernels` package has our kernels' name, and transformers takes ours for it.

    Raises:
        ModelError: It is installed.
    """
    if importlib.util.find_spec("kernels") is None:
        return
    try:
        version = importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return
    raise ModelError(
        f"Hugging Face's package `kernels` {version} is installed here and has the name of this repository's folder "
        "kernels/, so transformers cannot load models; uninstall it (pip uninstall kernels) to use the engine"
    )


def find_model(model: str, load_format: str, *, hf: bool = False) -> Found:
    """Read the config of a preset (with `load_format` dummy), a folder or a hub id.

    Args:
        model: Its name.
        load_format: As the option says.
        hf: Whether transformers' own code is to run it; then the spec is an outline.

    Raises:
        ModelError: There is no such model, or it is of a kind that is not supported.
    """
    check_name_clash()
    read = outline if hf else read_spec
    if load_format == "dummy" and model in PRESETS and not Path(model).is_dir():
        config = preset_config(model)
        return Found(config, None, read(config))
    if model in PRESETS and "/" not in model and model != "gpt2":
        raise ModelError(f"{model!r} is a preset, which has random weights: add load_format='dummy'")
    folder = find_checkpoint(model)
    config = read_config(folder)
    spec = read(config)
    eos = read_eos(folder)
    return Found(config, folder, spec if eos is None else replace(spec, eos_token_ids=eos))


def choose_device(name: str) -> torch.device:
    """The device that an option names.

    Raises:
        ConfigError: There is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device='cuda', but torch finds no GPU here; device='cpu' runs the same, slowly")
    cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that an option names."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_core(found: Found, config: EngineConfig, progress: Callable[[str], None] | None = None) -> EngineCore:
    """Read weights, warm up, size the cache.

    Args:
        found: From `find_model`.
        config: Options.
        progress: Told what is being done.

    Raises:
        ConfigError: Options do not fit each other, the model or the machine.
        ModelError: The checkpoint is not what its config says.
    """
    say = progress or _log.info
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    max_model_len = _max_model_len(config, found.spec)
    if device.type == "cuda":
        # An engine that nobody has any more may be in a cycle, and hold nearly all memory. Were it freed later, weights
        # would lie in what was its cache, of which the rest could not be given back.
        gc.collect()
        torch.cuda.empty_cache()
    hf = _load_hf(found, config, dtype, device, say) if config.attention_backend == "hf" else None
    spec = found.spec if hf is None else hf.spec
    variants = choose(config, spec, device, dtype)
    ops = make_ops(variants)
    attention = make_attention(variants, spec, config, max_model_len, device)
    capture = functools.partial(CudaCapture, device) if variants.cuda_graph != "off" else None
    model = hf or _load_decoder(found, config, ops, max_model_len, dtype, device, say)
    machine = Machine(model, ops, attention, device, dtype, stream_of(device), capture)
    if device.type == "cuda":
        say("warming up")
        runner = _warmed_up(machine, config, variants, max_model_len, say)
    else:
        blocks = config.num_blocks or _cpu_blocks(spec, config, max_model_len, dtype)
        runner = Runner(machine, config, variants, max_model_len, blocks)
    if (runner.num_blocks + 1) * config.block_size > _MAX_SLOTS:
        raise ConfigError(f"num_blocks times block_size must be under 2**31; num_blocks is {runner.num_blocks}")
    return EngineCore(runner, config)


def _load_hf(
    found: Found, config: EngineConfig, dtype: torch.dtype, device: torch.device, say: Callable[[str], None]
) -> HFModel:
    folder = None if config.load_format == "dummy" else found.folder
    say(f"making random weights on {device}" if folder is None else f"reading {folder}")
    return load_hf(found.config, folder, found.spec, config.seed, dtype, device)


def _load_decoder(
    found: Found,
    config: EngineConfig,
    ops: Ops,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
    say: Callable[[str], None],
) -> Decoder:
    spec = found.spec
    if found.folder is None or config.load_format == "dummy":
        say(f"making random weights on {device}")
        weights = build_weights(spec, RandomWeights(config.seed, spec.initializer_range, dtype, device))
    else:
        say(f"reading {found.folder}")
        checkpoint = Checkpoint(found.folder, dtype, device)
        weights = build_weights(spec, checkpoint)
        checkpoint.check_all_used(tied=spec.tied)
    cos_sin = rotary_table(found.config, max_model_len, device) if spec.rope else None
    return Decoder(spec, weights, cos_sin, ops)


def make_ops(variants: Variants) -> Ops:
    """The small operations that the axis `ops` names."""
    if variants.ops == "torch":
        return TorchOps()
    from engine.ops.triton_ops import TritonOps  # noqa: PLC0415 - needs triton

    return TritonOps()


def make_attention(
    variants: Variants, spec: ModelSpec, config: EngineConfig, max_model_len: int, device: torch.device
) -> AttentionBackend:
    """The backend that the axis `attention_backend` names."""
    if variants.attention_backend == "reference":
        return ReferenceAttention()
    if variants.attention_backend == "hf" and not (
        variants.ops == "triton" and head_dim_fits(spec) and block_size_fits(config)
    ):
        return HFAttention()
    max_tokens = -(-max_model_len // config.block_size) * config.block_size
    heads = (spec.num_heads, spec.num_kv_heads, spec.head_dim)
    return TritonAttention(config.max_num_seqs, *heads, max_tokens, variants.attention_launch, device)


def _max_model_len(config: EngineConfig, spec: ModelSpec) -> int:
    longest = config.max_model_len or spec.max_positions
    if longest > spec.max_positions:
        raise ConfigError(f"max_model_len is {longest}, but the model was made for {spec.max_positions} positions")
    return longest


def _block_nbytes(spec: ModelSpec, config: EngineConfig, dtype: torch.dtype) -> int:
    return KVCache.block_nbytes(spec.num_layers, config.block_size, spec.num_kv_heads, spec.head_dim, dtype)


def _cpu_blocks(spec: ModelSpec, config: EngineConfig, max_model_len: int, dtype: torch.dtype) -> int:
    wanted = (config.max_active or config.max_num_seqs) * -(-max_model_len // config.block_size)
    return max(1, min(wanted, CPU_CACHE_BYTES // _block_nbytes(spec, config, dtype)))


def _warmed_up(
    machine: Machine, config: EngineConfig, variants: Variants, max_model_len: int, say: Callable[[str], None]
) -> Runner:
    """A runner whose kernels are compiled, with a cache of the blocks asked for, or of all memory allowed."""
    max_active = config.max_active or config.max_num_seqs
    tokens = min(config.max_num_batched_tokens, max_active * (max_model_len - 1))
    if not config.chunked_prefill:
        tokens = max(tokens, max_model_len - 1)
    runner = Runner(machine, config, variants, max_model_len, num_blocks=1)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    try:
        runner.warm_up(tokens, min(config.prefill_max_batch_size or max_active, max_active))
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        others = total - free - torch.cuda.memory_reserved()
        left = int(total * config.gpu_memory_utilization) - others - peak
        blocks = config.num_blocks or left // _block_nbytes(runner.spec, config, machine.dtype) - 1
        if blocks < 1:
            raise ConfigError(
                f"gpu_memory_utilization={config.gpu_memory_utilization} leaves no memory for the cache beside "
                f"{peak / 2**30:.1f} GiB of weights and activations; raise it, or lower max_num_batched_tokens"
            )
        machine.ops.trust_arguments()
        machine.attention.trust_arguments()
        if machine.capture is not None:
            say("recording CUDA graphs")

        def allocate(blocks: int) -> None:
            runner.reallocate(blocks)
            runner.capture()

        allocate_what_fits(allocate, blocks, asked_for=config.num_blocks is not None, say=say)
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "the GPU's memory does not hold the weights, a step's activations and the cache; lower num_blocks, "
            "max_num_batched_tokens or max_num_seqs"
        ) from error
    return runner


def allocate_what_fits(
    allocate: Callable[[int], None], blocks: int, *, asked_for: bool, say: Callable[[str], None]
) -> None:
    """Make a cache of so many blocks, or where memory does not hold it of fewer: what was free was an estimate.

    Args:
        allocate: Makes a cache, and everything that knows where it is; called again after it has failed.
        blocks: How many.
        asked_for: Whether somebody has named this number, which is then kept to.
        say: Told of fewer.

    Raises:
        torch.OutOfMemoryError: Memory does not hold what was asked for, or not even one block.
    """
    while True:
        try:
            allocate(blocks)
        except torch.OutOfMemoryError:
            if asked_for or blocks == 1:
                raise
        else:
            return
        fewer = max(1, int(blocks * _SMALLER))
        message = f"the GPU's memory does not hold a cache of {blocks} blocks beside CUDA graphs; trying {fewer}"
        say(message)
        _log.warning(message)
        blocks = fewer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
