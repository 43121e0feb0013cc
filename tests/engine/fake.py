"""A model whose next token is a hash of its whole context as the block table finds it, and what it must generate.

Layer 0 caches a number for each token at its position. Attention makes a hash of all that it finds in the cache, keys
and values, in order; layer 1 caches these hashes, so that, as in a real model, what deeper layers hold of a token
depends on everything before it: a block with the right tokens after a wrong beginning is wrong. All numbers are
integers below 2**31, which float64 holds exactly, so that outputs can be compared exactly, whatever the batch.
"""

import itertools
import math
from functools import cache
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.llm import LLM
from engine.machine import Machine
from engine.models.spec import ModelSpec
from engine.ops.interface import Rotary
from engine.ops.torch_ops import TorchOps
from engine.runner import Runner
from engine.sequence import FinishReason
from engine.stream import Immediate
from engine.tokenizer import ByteTokenizer
from engine.variants.choice import choose
from kernels import reference

LAYERS = 2
HEAD_DIM = 2
VOCAB = 256
MAX_POSITIONS = 512
PRIME = 2**31 - 1
# A position's key and value hold as many numbers as this, each made of the same one.
WORDS = 2 * HEAD_DIM
# What is read where nobody has written.
POISON = PRIME - 1


@cache
def _weights():
    """How much each number of each position counts in a hash: `[positions, WORDS]`."""
    powers = list(itertools.accumulate(range(MAX_POSITIONS * WORDS), lambda power, _: power * 48271 % PRIME, initial=7))
    return [powers[i : i + WORDS] for i in range(0, MAX_POSITIONS * WORDS, WORDS)]


@cache
def _weights_array():
    return np.array(_weights(), dtype=np.int64)


def _words(number):
    """The numbers that a position's key and value hold; works on arrays, too."""
    return [number, (number * 16807 + 1) % PRIME, (number * 69621 + 2) % PRIME, (number * 39373 + 3) % PRIME]


def _mix(total, query):
    return (total % PRIME * (total % PRIME) + query) % PRIME


class Interrupted(KeyboardInterrupt):
    """What tests interrupt a step with."""


class FakeModel:
    """See `engine.runner.Model`.

    Args:
        eos: Tokens that end a text.
        rope: Whether keys are rotated (by 0), which takes the engine's other way into the cache.
    """

    def __init__(self, *, eos=(), rope=False):
        self.spec = ModelSpec(
            model_type="fake",
            vocab_size=VOCAB,
            hidden_size=HEAD_DIM,
            intermediate_size=1,
            num_layers=LAYERS,
            num_heads=1,
            num_kv_heads=1,
            head_dim=HEAD_DIM,
            max_positions=MAX_POSITIONS,
            norm="layer",
            norm_eps=1e-5,
            activation="gelu",
            rope=rope,
            qkv_bias=False,
            out_bias=False,
            mlp_bias=False,
            qk_norm=False,
            windows=(0,) * LAYERS,
            scales=(1.0,) * LAYERS,
            tied=True,
            eos_token_ids=tuple(eos),
            initializer_range=0.02,
        )
        unmoved = torch.tensor([[1.0, 0.0]]).expand(MAX_POSITIONS, HEAD_DIM)
        self.rotary = [Rotary(unmoved, None, None, 1e-5) if rope else None] * LAYERS
        # The layer in which the next forward pass is interrupted, when keys and values have been written, and by what.
        self.interrupt_in = None
        self.interrupt_with = Interrupted

    def forward(self, token_ids, positions, attend):
        number = positions.long() * VOCAB + token_ids.long() + 1
        for layer in range(LAYERS):
            words = torch.stack(_words(number), -1).double()[:, None]
            query = number.double()[:, None, None].expand(-1, 1, HEAD_DIM).contiguous()
            number = attend(layer, query, *words.split(HEAD_DIM, -1))[:, 0, 0].long()
            if layer == self.interrupt_in:
                self.interrupt_in = None
                raise self.interrupt_with
        return number.double()[:, None]

    def logits(self, hidden):
        return logits(hidden[:, 0].long())


def logits(hashes):
    """`[rows, VOCAB]`: the hash's own token is the likeliest, each one after it a little less."""
    return -0.4 * ((torch.arange(VOCAB) - hashes[:, None]) % VOCAB).double()


class FakeAttention:
    """See `engine.variants.attention.AttentionBackend`."""

    def decode(self, query, caches, block_table, seq_lens, max_seq_len, *, new, append, **_):
        size = caches[0].shape[1]
        lengths = seq_lens.numpy()
        rows, last = np.arange(len(lengths)), lengths - 1
        table = block_table.numpy()[:, : -(-max_seq_len // size)]
        # Entries past a sequence's blocks mean nothing, and may be anything.
        table = np.where(np.arange(table.shape[1]) * size < lengths[:, None], table, 0)
        if new is not None and append:
            for target, fresh in zip(caches, new, strict=True):
                target.numpy()[table[rows, last // size], last % size] = fresh.numpy()
        found = [cached.numpy()[table].reshape(len(rows), -1, HEAD_DIM)[:, :max_seq_len] for cached in caches]
        if new is not None and not append:
            for held, fresh in zip(found, new, strict=True):
                held[rows, last] = fresh.numpy()[:, 0]
        numbers = _read(np.concatenate(found, -1))
        numbers[np.arange(max_seq_len) >= lengths[:, None]] = 0
        totals = (numbers * _weights_array()[:max_seq_len] % PRIME).sum((1, 2))
        return _output(_mix(totals, query.numpy()[:, 0, 0].astype(np.int64)))

    def prefill(self, query, caches, block_table, bounds, seq_lens, **_):
        size = caches[0].shape[1]
        own = query.numpy()[:, 0, 0].astype(np.int64)
        hashes = []
        for row, length in enumerate(seq_lens[1]):
            start, end = bounds[1][row : row + 2]
            table = block_table.numpy()[row, : -(-length // size)]
            found = [cached.numpy()[table].reshape(-1, HEAD_DIM)[:length] for cached in caches]
            terms = _read(np.concatenate(found, -1)) * _weights_array()[:length] % PRIME
            totals = terms.sum(1).cumsum()[length - (end - start) :]
            hashes.append(_mix(totals, own[start:end]))
        return _output(np.concatenate(hashes))


def _read(values):
    return np.nan_to_num(values, nan=POISON).astype(np.int64)


def _output(hashes):
    return torch.from_numpy(hashes.astype(np.float64))[:, None, None].expand(-1, 1, HEAD_DIM)


class FakeOps(TorchOps):
    """Torch's, that can be interrupted while blocks are copied."""

    def __init__(self):
        self.interrupt_copy = False

    def copy_blocks(self, k_cache, v_cache, pairs):
        if self.interrupt_copy:
            self.interrupt_copy = False
            raise Interrupted
        super().copy_blocks(k_cache, v_cache, pairs)


def again_as_it_was(work):
    """Stands in for a CUDA graph: runs the work, and the same work each time it is replayed."""
    work()
    return work


DEFAULTS = {"max_model_len": 64, "num_blocks": 64, "block_size": 4}


def make_core(*, eos=(), rope=False, stream=None, **options):
    """A core around a fake model, its cache full of poison; `options` are `EngineConfig`'s.

    Where they ask for CUDA graphs, steps are closures over what there is when they are recorded.
    """
    config = EngineConfig.from_options(**DEFAULTS | options)
    model, device = FakeModel(eos=eos, rope=rope), torch.device("cpu")
    variants = choose(config, model.spec, device, torch.float64, simulated=True)
    machine = Machine(
        model, FakeOps(), FakeAttention(), device, torch.float64, stream or Immediate(), lambda: again_as_it_was
    )
    runner = Runner(machine, config, variants, config.max_model_len, config.num_blocks)
    runner.cache.keys.zero_()
    runner.cache.values.zero_()
    runner.capture()
    core = EngineCore(runner, config)
    poison_free_blocks(core)
    return core


def make_llm(*, tokenizer=None, eos=(), rope=False, **options):
    """An LLM around a fake model."""
    core = make_core(eos=eos, rope=rope, **options)
    loaders = {
        "find_model": lambda *_, **__: SimpleNamespace(folder=None, spec=model_of(core).spec),
        "load_tokenizer": lambda *_: tokenizer or ByteTokenizer(),
        "load_core": lambda *_: core,
    }
    with mock.patch.multiple("engine.llm", **loaders):
        return LLM("fake", **DEFAULTS | options)


def model_of(core):
    return core.runner._machine.model


def poison_free_blocks(core):
    """Make what nobody owns and nobody can find unreadable."""
    free = list(core.blocks._free)
    core.runner.cache.keys[:, free] = math.nan
    core.runner.cache.values[:, free] = math.nan


class Context:
    """The hash of a context that grows a token at a time, without blocks, batches and steps."""

    def __init__(self, tokens):
        self._totals = [0] * LAYERS
        self._length = 0
        self.hash = 0
        for token in tokens:
            self.push(token)

    def push(self, token):
        number = self._length * VOCAB + token + 1
        weights = _weights()[self._length]
        for layer in range(LAYERS):
            self._totals[layer] += sum(w * word % PRIME for w, word in zip(weights, _words(number), strict=True))
            number = _mix(self._totals[layer], number)
        self._length += 1
        self.hash = number


def oracle(tokens, num_prompt, params, *, seed=0, eos=(), max_model_len=64):
    """All tokens of a request that stands at `tokens`, and why it ends, from the definition of each alone."""
    tokens = list(tokens)
    context = Context(tokens)
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else eos)}
    while True:
        token = _choose(context.hash, params.temperature, seed, len(tokens) - num_prompt)
        tokens.append(token)
        context.push(token)
        if token in ends:
            return tokens, FinishReason.STOP
        if len(tokens) - num_prompt >= params.max_tokens or len(tokens) >= max_model_len:
            return tokens, FinishReason.LENGTH


def _choose(number, temperature, seed, position):
    if not temperature:
        return number % VOCAB
    row = (logits(torch.tensor([number])), torch.tensor([temperature]), torch.tensor([seed]), torch.tensor([position]))
    return int(reference.sample(*row))


def alone(prompt, params, **more):
    """What the oracle generates for a prompt."""
    return oracle(prompt, len(prompt), params, **more)[0][len(prompt) :]
