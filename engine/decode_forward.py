"""A decode step's forward pass, from a batch's integers on the device to its logits."""

from torch import Tensor

from engine.kv_cache import KVCache
from engine.machine import Machine
from engine.ranges import MODEL_FORWARD, annotate
from engine.sequence import Sequence
from engine.variants.inputs import DecodeInputs
from engine.variants.kv_append import KVAppend, LayerStep
from kernels.rows import score_rows


class DecodeForward:
    """The model over the paged cache, a token a sequence.

    Args:
        machine: What it runs with.
        cache: Keys and values.
        append: How new ones get there.
    """

    def __init__(self, machine: Machine, cache: KVCache, append: KVAppend) -> None:
        self._machine = machine
        self._cache = cache
        self._append = append

    def __call__(
        self, inputs: DecodeInputs, tables: Tensor, max_seq_len: int, seqs: list[Sequence] | None = None
    ) -> Tensor:
        """Run the model.

        Args:
            inputs: Tokens, positions and lengths, `[batch]`.
            tables: int32 `[1, batch, width]`, or `[num_layers, batch, width]` of blocks counted through all layers.
            max_seq_len: What no length exceeds.
            seqs: The batch, for forms of append that look things up on the host.

        Returns:
            Logits, `[batch, vocab_size]`.
        """
        model, attention, spec = self._machine.model, self._machine.attention, self._machine.model.spec
        per_layer = len(tables) > 1
        # Layer 0's blocks are numbered alike in both kinds of table.
        self._append.begin(seqs or [], inputs, tables[0])

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            def attend_to_cache(new: tuple[Tensor, Tensor] | None, append: bool) -> Tensor:
                return attention.decode(
                    query,
                    self._cache.flat if per_layer else self._cache.layers[layer],
                    tables[layer if per_layer else 0],
                    inputs.seq_lens,
                    max_seq_len,
                    scale=spec.scales[layer],
                    window=spec.windows[layer],
                    new=new,
                    append=append,
                )

            caches, rotary = self._cache.layers[layer], model.rotary[layer]
            return self._append.layer(LayerStep(query, key, value, caches, rotary, attend_to_cache))

        with annotate(MODEL_FORWARD):
            return model.logits(model.forward(inputs.token_ids, inputs.positions, attend))


class KeptLogits:
    """Logits in memory of their own, which a recording can write and whatever comes after it can read.

    Recordings share the memory in which they compute, so that kept there each would need its own.

    Args:
        most: Rows at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: Tensor | None = None

    def keep(self, logits: Tensor) -> None:
        """Copy logits `[batch, vocab_size]`. The first call, before any recording, makes the memory."""
        if self._kept is None:
            self._kept = score_rows(self._most, logits.shape[1], logits.dtype, logits.device)
        self._kept[: len(logits)].copy_(logits)

    def rows(self, count: int) -> Tensor:
        """The first rows of what was kept last."""
        assert self._kept is not None
        return self._kept[:count]
