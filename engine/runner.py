"""Runs planned work on the device: prefill chunks, decode batches, block copies."""

import itertools
import time
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine import ranges
from engine.config import EngineConfig
from engine.decode_forward import DecodeForward
from engine.device_loop import DeviceLoop
from engine.graphed_forward import GraphedForward
from engine.kv_cache import KVCache
from engine.machine import Machine, Model
from engine.ranges import annotate
from engine.sampling_params import SamplingParams
from engine.scheduler import Chunk, sampled_by
from engine.sequence import Sequence
from engine.staging import Staging
from engine.timing import Timing
from engine.variants.block_tables import BLOCK_TABLES, BlockTables, TableSizes
from engine.variants.choice import Variants
from engine.variants.inputs import INPUTS, Inputs, build_dense_mask
from engine.variants.kv_append import KV_APPENDS, KVAppend
from engine.variants.sampler import SAMPLERS, Known, Sampler, Tokens


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
        self._staging = Staging(machine.device, machine.stream)
        self._allocate(num_blocks)

    def _allocate(self, num_blocks: int) -> None:
        """The cache, and everything that knows where it is."""
        spec, machine, config, variants = self.spec, self._machine, self._config, self.variants
        self.num_blocks = num_blocks
        # One block more, which nobody owns: rows without a sequence read and write it.
        sizes = (spec.num_layers, num_blocks + 1, config.block_size, spec.num_kv_heads, spec.head_dim)
        self.cache = KVCache(*sizes, machine.dtype, machine.device)
        for cache in (self.cache.keys, self.cache.values):
            cache[:, num_blocks] = 0
        self._append: KVAppend = KV_APPENDS[variants.kv_append](
            machine.ops, config.block_size, config.kv_append_min_batch, rope=spec.rope
        )
        self._forward = DecodeForward(machine, self.cache, self._append)
        parts = (machine, self._forward, config, variants, self.max_model_len, num_blocks)
        in_graph = variants.block_tables == "in_graph"
        self._loop = DeviceLoop(*parts) if in_graph else None
        self._graphed = GraphedForward(*parts) if variants.cuda_graph != "off" and not in_graph else None
        self.reset()

    @torch.inference_mode()
    def capture(self, *, most: int | None = None) -> None:
        """Record steps, where that is asked for; once kernels are compiled, and while no sequence decodes.

        Args:
            most: Record so many only, the largest first.
        """
        machine = self._machine
        recorded = self._loop or self._graphed
        if recorded is not None and machine.capture is not None:
            recorded.capture(machine.capture(), most=most)

    def reset(self) -> None:
        """Forget what was kept from step to step; after a step that did not end, it may be wrong."""
        ops, device, config, variants = self._machine.ops, self._machine.device, self._config, self.variants
        width = -(-self.max_model_len // config.block_size)
        sizes = TableSizes(self.spec.num_layers, self.num_blocks + 1, width, config.max_num_seqs)
        self._tables: BlockTables = BLOCK_TABLES[variants.block_tables](sizes, ops, device)
        self._inputs: Inputs = INPUTS[variants.inputs](config.max_num_seqs, device)
        self._sampler: Sampler = SAMPLERS[variants.sampler](ops, device)
        if self._loop is not None:
            self._loop.reset()
        if self._graphed is not None:
            self._graphed.reset()

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
    def prefill(self, chunks: list[Chunk]) -> Tokens:
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
            done = sampled_by(chunks)
            if not done:
                return Known([])
            logits = model.logits(hidden[inputs.last_rows])
        with annotate(ranges.SAMPLE):
            last = inputs.last_rows
            tokens, _ = self._sampler.sample(logits, done, lambda: inputs.token_ids[last], inputs.positions[last])
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
        last_rows = [
            end - 1 for chunk, end in zip(chunks, bounds[1:], strict=True) if chunk.last for _ in sampled_by([chunk])
        ]
        parts = [
            np.array([t for chunk in chunks for t in chunk.seq.tokens[chunk.start : chunk.end]], dtype=np.int32),
            positions,
            table[rows, positions // size] * size + positions % size,
            np.array(bounds, dtype=np.int32),
            np.array(seq_lens, dtype=np.int32),
            np.array(last_rows, dtype=np.int32),
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
    def decode(self, seqs: list[Sequence]) -> Tokens:
        """Begin a step: the next token of each sequence, whose tables have room for its last one."""
        if self._loop is not None:
            return self._loop.launch(seqs)
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
        if self._graphed is not None:
            logits = self._graphed.launch(inputs, tables)
        else:
            logits = self._forward(inputs, tables, max_seq_len, seqs)
            self._append.finish()
        with annotate(ranges.SAMPLE):
            tokens, on_device = self._sampler.sample(logits, seqs, lambda: inputs.token_ids, inputs.positions)
            if on_device is not None:
                self._inputs.sampled(seqs, on_device)
        return tokens

    @property
    def model(self) -> Model:
        """What it runs."""
        return self._machine.model

    @torch.inference_mode()
    def repeat_step(self) -> None:
        """Do the device's part of the last step once more, for a stopwatch; sequences are wrong from here on.

        Only where steps stay on the device.
        """
        assert self._loop is not None
        self._loop.repeat()

    def warm_up(self, max_prefill_tokens: int, max_prefill_seqs: int) -> None:
        """Run the largest steps there can be on made-up sequences, so that kernels are compiled and memory is known.

        Args:
            max_prefill_tokens: Of a step.
            max_prefill_seqs: Of a step.
        """
        longest = min(max_prefill_tokens, self.max_model_len - 1)
        batch = min(max_prefill_seqs, max_prefill_tokens)
        most, length = self._config.max_num_seqs, self.max_model_len - 1
        greedy, drawn = SamplingParams(), SamplingParams(temperature=1.0)
        for batch_size, params in ((most, self._everything_asked()), (most, drawn), (most, greedy), (1, greedy)):
            self.decode([self._made_up(length, params) for _ in range(batch_size)]).wait()
        self.reset()
        # The largest graph has its memory beside a prefill's.
        self.capture(most=1)
        for count in (-(-max_prefill_tokens // longest), batch):
            length = max(1, min(longest, max_prefill_tokens // count))
            self.prefill([Chunk(self._made_up(length, greedy), 0, length, last=True) for _ in range(count)])
        self.reset()

    def _everything_asked(self) -> SamplingParams:
        """What needs the most memory, and every kernel that changes logits."""
        return SamplingParams(
            max_tokens=self.max_model_len,
            temperature=1.0,
            top_k=2,
            frequency_penalty=1.0,
            logit_bias={0: 1.0},
            logprobs=1,
        )

    def _made_up(self, length: int, params: SamplingParams) -> Sequence:
        """A sequence of so many tokens, all of them in the first block."""
        seq = Sequence("warm-up", [0] * length, 1, params, 0, Timing(time.perf_counter()))
        seq.block_table = [0] * -(-length // self._config.block_size)
        return seq

    def reallocate(self, num_blocks: int) -> None:
        """Give the cache another size; what it held is lost."""
        self._loop = self._graphed = None
        # Gone before new memory is asked for; where that has failed before they are gone already.
        for name in ("cache", "_forward"):
            self.__dict__.pop(name, None)
        self._allocate(num_blocks)
