"""Runs planned work on the device: prefill chunks, decode batches, block copies."""

import itertools
import time
from collections import Counter
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from engine import ranges
from engine.config import EngineConfig
from engine.kv_cache import KVCache
from engine.models.decoder import Attend
from engine.models.spec import ModelSpec
from engine.ops.interface import Ops, Rotary
from engine.ranges import annotate
from engine.sampling_params import SamplingParams
from engine.scheduler import Chunk
from engine.sequence import Sequence
from engine.staging import Staging
from engine.timing import Timing
from engine.variants.attention import AttentionBackend
from engine.variants.block_tables import BLOCK_TABLES, BlockTables, TableSizes
from engine.variants.choice import Variants
from engine.variants.inputs import INPUTS, Inputs, build_dense_mask
from engine.variants.kv_append import KV_APPENDS, KVAppend, LayerStep
from engine.variants.sampler import SAMPLERS, Sampler


class Model(Protocol):
    """What the runner asks of a model; `engine.models.decoder.Decoder` is one."""

    spec: ModelSpec
    rotary: list[Rotary | None]

    def forward(self, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states `[tokens, hidden]`; `attend` is called once a layer."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """`[rows, vocab]` of hidden states `[rows, hidden]`."""
        ...


class Machine(NamedTuple):
    """What a runner runs with.

    Attributes:
        model: The model.
        ops: Small operations; the model's own too.
        attention: How it reads the cache.
        device: Where all of it is.
        dtype: What the cache holds.
    """

    model: Model
    ops: Ops
    attention: AttentionBackend
    device: torch.device
    dtype: torch.dtype


class _PrefillInputs(NamedTuple):
    """One prefill's integers on the device, and those that the host needs too."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    bounds: tuple[Tensor, list[int]]
    seq_lens: tuple[Tensor, list[int]]
    last_rows: Tensor
    block_table: Tensor


class Runner:
    """Holds the cache and what the chosen variants keep from step to step.

    Args:
        machine: See there.
        config: Options.
        variants: The axes, settled.
        max_model_len: Tokens of a request at most.
        num_blocks: Blocks of the cache.
    """

    def __init__(
        self, machine: Machine, config: EngineConfig, variants: Variants, max_model_len: int, num_blocks: int
    ) -> None:
        self._machine = machine
        self._config = config
        self.variants = variants
        self.max_model_len = max_model_len
        self.spec = machine.model.spec
        self.cache = self._allocate(num_blocks)
        self._staging = Staging(machine.device)
        self.reset()

    def _allocate(self, num_blocks: int) -> KVCache:
        spec, machine = self.spec, self._machine
        sizes = (spec.num_layers, num_blocks, self._config.block_size, spec.num_kv_heads, spec.head_dim)
        return KVCache(*sizes, machine.dtype, machine.device)

    def reset(self) -> None:
        """Forget what was kept from step to step; after a step that did not end, it may be wrong."""
        ops, device, config, variants = self._machine.ops, self._machine.device, self._config, self.variants
        width = -(-self.max_model_len // config.block_size)
        sizes = TableSizes(self.spec.num_layers, self.cache.keys.shape[1], width, config.max_num_seqs)
        self._tables: BlockTables = BLOCK_TABLES[variants.block_tables](sizes, ops, device)
        self._inputs: Inputs = INPUTS[variants.inputs](config.max_num_seqs, device)
        self._append: KVAppend = KV_APPENDS[variants.kv_append](
            ops, config.block_size, config.kv_append_min_batch, rope=self.spec.rope
        )
        self._sampler: Sampler = SAMPLERS[variants.sampler](ops, device)

    @property
    def notes(self) -> Counter[str]:
        """How many steps did something else than a variant's name says, by what they did."""
        return self._append.notes

    @torch.inference_mode()
    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None:
        """Copy blocks, source to target, in all layers, before anything that is launched later."""
        self._staging.array(len(pairs), 2)[:] = pairs
        on_device = torch.empty((len(pairs), 2), dtype=torch.int32, device=self._machine.device)
        self._staging.send(on_device)
        self._machine.ops.copy_blocks(self.cache.keys, self.cache.values, on_device)

    @torch.inference_mode()
    def prefill(self, chunks: list[Chunk]) -> list[int]:
        """Compute chunks in one forward pass.

        Returns:
            A token for each chunk that is its sequence's last, in their order.
        """
        model, ops, attention, spec = (
            self._machine.model,
            self._machine.ops,
            self._machine.attention,
            self.spec,
        )
        with annotate(ranges.BUILD_BLOCK_TABLES):
            host = self._prefill_arrays(chunks)
        with annotate(ranges.H2D_INPUTS):
            inputs = self._send_prefill(*host)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            caches, rotary = self.cache.layers[layer], model.rotary[layer]
            if rotary is None:
                with annotate(ranges.KV_APPEND):
                    ops.append(caches, key, value, inputs.slots)
            else:
                ops.rotate_and_append(query, key, value, inputs.positions, rotary, caches, inputs.slots)
            return attention.prefill(
                query,
                caches,
                inputs.block_table,
                inputs.bounds,
                inputs.seq_lens,
                scale=spec.scales[layer],
                window=spec.windows[layer],
            )

        with annotate(ranges.MODEL_FORWARD):
            hidden = model.forward(inputs.token_ids, inputs.positions, attend)
            done = [chunk.seq for chunk in chunks if chunk.last]
            if not done:
                return []
            logits = model.logits(hidden[inputs.last_rows])
        with annotate(ranges.SAMPLE):
            tokens, _ = self._sampler.sample(logits, done, inputs.positions[inputs.last_rows])
        return tokens

    def _prefill_arrays(self, chunks: list[Chunk]) -> tuple[list[np.ndarray], list[int], list[int]]:
        """Parts of the packed inputs, in the order of `_PrefillInputs`, and bounds and lengths as lists."""
        size = self._config.block_size
        bounds = [0, *itertools.accumulate(chunk.end - chunk.start for chunk in chunks)]
        seq_lens = [chunk.end for chunk in chunks]
        width = max(-(-length // size) for length in seq_lens)
        table = np.zeros((len(chunks), width), dtype=np.int32)
        positions = np.concatenate([np.arange(chunk.start, chunk.end, dtype=np.int32) for chunk in chunks])
        for row, (chunk, length) in enumerate(zip(chunks, seq_lens, strict=True)):
            used = -(-length // size)
            table[row, :used] = chunk.seq.block_table[:used]
        rows = np.repeat(np.arange(len(chunks)), np.diff(bounds))
        parts = [
            np.array([t for chunk in chunks for t in chunk.seq.tokens[chunk.start : chunk.end]], dtype=np.int32),
            positions,
            table[rows, positions // size] * size + positions % size,
            np.array(bounds, dtype=np.int32),
            np.array(seq_lens, dtype=np.int32),
            np.array([end - 1 for chunk, end in zip(chunks, bounds[1:], strict=True) if chunk.last], dtype=np.int32),
            table,
        ]
        return parts, bounds, seq_lens

    def _send_prefill(self, parts: list[np.ndarray], bounds: list[int], seq_lens: list[int]) -> _PrefillInputs:
        """All of them in one copy."""
        ends = list(itertools.accumulate(part.size for part in parts))
        self._staging.array(ends[-1])[:] = np.concatenate([part.ravel() for part in parts])
        packed = torch.empty(ends[-1], dtype=torch.int32, device=self._machine.device)
        self._staging.send(packed)
        tensors = [packed[end - part.size : end].view(part.shape) for part, end in zip(parts, ends, strict=True)]
        token_ids, positions, slots, bounds_there, lens_there, last_rows, table = tensors
        return _PrefillInputs(
            token_ids, positions, slots, (bounds_there, bounds), (lens_there, seq_lens), last_rows, table
        )

    @torch.inference_mode()
    def decode(self, seqs: list[Sequence]) -> list[int]:
        """The next token of each sequence, whose tables have room for its last one."""
        model, attention, spec = self._machine.model, self._machine.attention, self.spec
        with annotate(ranges.BUILD_BLOCK_TABLES):
            self._tables.build(seqs)
        with annotate(ranges.H2D_BLOCK_TABLES):
            tables = self._tables.upload()
        with annotate(ranges.H2D_INPUTS):
            inputs = self._inputs.prepare(seqs)
        max_seq_len = max(len(seq.tokens) for seq in seqs)
        if self.variants.dense_mask == "on":
            with annotate(ranges.DENSE_MASK):
                build_dense_mask(max_seq_len - 1, inputs.positions)
        # Layer 0's blocks are numbered alike in both kinds of table.
        self._append.begin(seqs, inputs, tables[0])
        per_layer = self._tables.per_layer

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            def attend_to_cache(new: tuple[Tensor, Tensor] | None, append: bool) -> Tensor:
                return attention.decode(
                    query,
                    self.cache.flat if per_layer else self.cache.layers[layer],
                    tables[layer if per_layer else 0],
                    inputs.seq_lens,
                    max_seq_len,
                    scale=spec.scales[layer],
                    window=spec.windows[layer],
                    new=new,
                    append=append,
                )

            caches, rotary = self.cache.layers[layer], model.rotary[layer]
            return self._append.layer(LayerStep(query, key, value, caches, rotary, attend_to_cache))

        with annotate(ranges.MODEL_FORWARD):
            logits = model.logits(model.forward(inputs.token_ids, inputs.positions, attend))
        self._append.finish()
        with annotate(ranges.SAMPLE):
            tokens, on_device = self._sampler.sample(logits, seqs, inputs.positions)
            if on_device is not None:
                self._inputs.sampled(seqs, on_device)
        return tokens

    def warm_up(self, max_prefill_tokens: int, max_prefill_seqs: int) -> None:
        """Run the largest steps there can be on made-up sequences, so that kernels are compiled and memory is known.

        Args:
            max_prefill_tokens: Of a step.
            max_prefill_seqs: Of a step.
        """
        longest = min(max_prefill_tokens, self.max_model_len - 1)
        batch = min(max_prefill_seqs, max_prefill_tokens)
        for count in (-(-max_prefill_tokens // longest), batch):
            length = max(1, min(longest, max_prefill_tokens // count))
            self.prefill([Chunk(self._made_up(length, 0.0), 0, length, last=True) for _ in range(count)])
        for batch, temperature in ((self._config.max_num_seqs, 1.0), (self._config.max_num_seqs, 0.0), (1, 0.0)):
            self.decode([self._made_up(self.max_model_len - 1, temperature) for _ in range(batch)])
        self.reset()

    def _made_up(self, length: int, temperature: float) -> Sequence:
        """A sequence of so many tokens, all of them in the first block."""
        params = SamplingParams(temperature=temperature)
        seq = Sequence("warm-up", [0] * length, 1, params, 0, Timing(time.perf_counter()))
        seq.block_table = [0] * -(-length // self._config.block_size)
        return seq

    def reallocate(self, num_blocks: int) -> None:
        """Give the cache another size; what it held is lost."""
        del self.cache
        self.cache = self._allocate(num_blocks)
        self.reset()
