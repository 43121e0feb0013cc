"""Options and combinations of variants: what they take, and the one sentence for what they do not."""

import pytest
import torch

from engine import ConfigError, EngineConfig
from engine.models.families import read_spec
from engine.models.presets import preset_config
from engine.variants.choice import AXES, choose

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def spec(name="tiny-gpt2", **changes):
    config = preset_config(name)
    config.update(changes)
    return read_spec(config)


def chosen(device=CPU, dtype=torch.float32, model="tiny-gpt2", **options):
    return choose(EngineConfig.from_options(**options), spec(model), device, dtype)


@pytest.fixture
def no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_options_come_as_values_or_as_text():
    config = EngineConfig.from_options(
        num_blocks="64", max_active="none", prefix_cache="off", gpu_memory_utilization="0.5", dense_mask=True
    )
    assert (config.num_blocks, config.max_active, config.prefix_cache) == (64, None, False)
    assert (config.gpu_memory_utilization, config.dense_mask) == (0.5, "on")
    assert EngineConfig.from_options(chunked_prefill=False, seed=3) == EngineConfig(chunked_prefill=False, seed=3)


WRONG = [
    ({"blok_tables": "resident"}, "unknown option 'blok_tables'; did you mean 'block_tables'?"),
    ({"mode": "onlin"}, "unknown value of mode 'onlin'; did you mean 'online'?"),
    ({"dtype": "int8"}, "unknown value of dtype 'int8'; there are auto, float32, float16, bfloat16, float64"),
    ({"num_blocks": 0}, "num_blocks must be at least 1, but is 0"),
    ({"num_blocks": "many"}, "num_blocks must be an integer, but is 'many'"),
    ({"num_blocks": True}, "num_blocks must be an integer, but is True"),
    ({"num_blocks": 2.5}, "num_blocks must be an integer, but is 2.5"),
    ({"prefix_cache": "maybe"}, "prefix_cache must be on or off, but is 'maybe'"),
    ({"mode": 3}, "mode must be text, but is 3"),
    ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization must be over 0 and at most 1, but is 1.5"),
    ({"block_size": None}, "block_size must be an integer, but is None"),
    ({"max_inflight": 0}, "max_inflight must be at least 1, but is 0"),
    (
        {"admission_lookahead": 4},
        "admission_lookahead is for admission='pack'; with 'fifo' it would change nothing",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_options(options, message):
    with pytest.raises(ConfigError) as raised:
        EngineConfig.from_options(**options)
    assert str(raised.value) == message


def test_defaults_of_a_cpu_and_of_a_gpu():
    here, there = chosen(), chosen(GPU, torch.bfloat16)
    assert (here.attention_backend, here.ops, here.kv_append) == ("reference", "torch", "slot_mapping")
    assert (there.attention_backend, there.ops, there.kv_append) == ("triton", "triton", "fused")
    assert (here.block_tables, here.inputs, here.sampler) == ("resident", "on_device", "batched")
    assert (here.cuda_graph, here.graph_sampling, here.overlap) == ("off", "outside", "off")
    assert (there.block_tables, there.inputs, there.sampler) == ("in_graph", "on_device", "on_device")
    assert (there.cuda_graph, there.graph_sampling, there.overlap) == ("buckets", "inside", "on")


def test_auto_follows_what_is_asked_for():
    assert chosen(sampler="item_loop").inputs == "packed_pinned"
    for asked in ({"sampler": "batched"}, {"inputs": "packed_pinned"}, {"block_tables": "shared_pinned"}):
        found = chosen(GPU, torch.bfloat16, **asked)
        assert found.block_tables == asked.get("block_tables", "resident")
        assert (found.cuda_graph, found.graph_sampling, found.overlap) == ("buckets", "outside", "off")
    found = chosen(GPU, torch.bfloat16, graph_sampling="inside")
    assert (found.block_tables, found.sampler, found.cuda_graph) == ("in_graph", "on_device", "buckets")
    found = chosen(GPU, torch.bfloat16, kv_append="triton")
    assert (found.block_tables, found.cuda_graph, found.overlap) == ("resident", "off", "off")
    assert chosen(GPU, torch.bfloat16, attention_backend="reference").cuda_graph == "off"
    found = chosen(overlap="on")
    assert (found.block_tables, found.sampler, found.cuda_graph) == ("in_graph", "on_device", "off")
    assert chosen(GPU, torch.float64).attention_backend == "reference"
    assert chosen(GPU, torch.bfloat16, block_size=8).attention_backend == "reference"


COMBINATIONS = [
    (
        {"block_tables": "in_graph", "sampler": "item_loop"},
        (
            "block_tables='in_graph' cannot have sampler='item_loop', which needs the host in every step; "
            "sampler='on_device' is what fits it"
        ),
    ),
    (
        {"block_tables": "in_graph", "sampler": "batched"},
        (
            "block_tables='in_graph' cannot have sampler='batched', which needs the host in every step; "
            "sampler='on_device' is what fits it"
        ),
    ),
    (
        {"block_tables": "in_graph", "kv_append": "torch_indexed"},
        (
            "block_tables='in_graph' cannot have kv_append='torch_indexed', which needs the host in every step; "
            "kv_append='fused' is what fits it"
        ),
    ),
    (
        {"overlap": "on", "block_tables": "resident"},
        (
            "overlap='on' needs block_tables='in_graph': with 'resident' the host must know a step's tokens before "
            "it can launch the next"
        ),
    ),
    (
        {"cuda_graph": "exact"},
        "cuda_graph='exact' needs a GPU; cuda_graph='off' runs the same steps on a CPU",
    ),
    (
        {"cuda_graph": "buckets", "kv_append": "triton", "device_": GPU, "dtype_": torch.bfloat16},
        (
            "cuda_graph='buckets' cannot have kv_append='triton', whose index tensors the host builds in each step; "
            "kv_append='fused' or 'slot_mapping' can be captured"
        ),
    ),
    (
        {"graph_sampling": "inside", "cuda_graph": "off", "device_": GPU, "dtype_": torch.bfloat16},
        "graph_sampling='inside' needs cuda_graph='exact' or 'buckets': there is no graph to sample in",
    ),
    (
        {"graph_sampling": "inside", "block_tables": "resident", "device_": GPU, "dtype_": torch.bfloat16},
        (
            "graph_sampling='inside' needs block_tables='in_graph', which has sampling's parameters on the device; "
            "'resident' has not"
        ),
    ),
    (
        {"attention_backend": "triton"},
        "attention_backend='triton' needs a GPU (or TRITON_INTERPRET=1, which is slow)",
    ),
    (
        {"kv_append": "triton", "device_": GPU, "dtype_": torch.float64},
        "kv_append='triton' cannot have dtype='float64': the kernels know float32, float16 and bfloat16",
    ),
    (
        {"attention_launch": "autotune", "attention_backend": "reference", "device_": GPU},
        "attention_launch='autotune' needs attention_backend='triton': 'reference' launches no kernel of ours",
    ),
    (
        {"attention_backend": "triton", "block_size": 12, "device_": GPU},
        "attention_backend='triton' needs block_size 16, 32, 64, 128 or 256, but it is 12",
    ),
    (
        {"ops": "triton", "block_size": 12, "attention_backend": "reference", "device_": GPU},
        "ops='triton' needs block_size to be a power of two, but it is 12",
    ),
    (
        {"kv_append_min_batch": 128},
        "kv_append_min_batch is for kv_append triton, triton_identity_pos, triton_full_batch; 'slot_mapping' has none",
    ),
    (
        {"inputs": "on_device", "sampler": "item_loop"},
        "inputs='on_device' cannot have sampler='item_loop', which leaves no batch of tokens on the device",
    ),
    (
        {"kv_append": "full_batch"},
        "unknown value of kv_append 'full_batch'; did you mean 'triton_full_batch'?",
    ),
    ({"ops": "cuda"}, "unknown value of ops 'cuda'; there are torch, triton"),
]


@pytest.mark.usefixtures("no_interpreter")
@pytest.mark.parametrize(("options", "message"), COMBINATIONS, ids=lambda value: str(value)[:60])
def test_combinations_that_cannot_be(options, message):
    options = dict(options)
    device, dtype = options.pop("device_", CPU), options.pop("dtype_", torch.float32)
    with pytest.raises(ConfigError) as raised:
        chosen(device, dtype, **options)
    assert str(raised.value) == message


def test_what_the_interpreter_cannot_do(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert chosen(ops="triton").ops == "triton"
    with pytest.raises(ConfigError, match=r"^ops='triton' cannot have dtype='bfloat16' in Triton's interpreter"):
        chosen(dtype=torch.bfloat16, ops="triton")
    with pytest.raises(ConfigError, match=r"^attention_launch='autotune' needs a GPU: there is nothing to time"):
        chosen(attention_backend="triton", attention_launch="autotune")


def test_heads_that_the_attention_kernel_does_not_know():
    narrow = spec("tiny-gpt2", n_head=4)
    assert choose(EngineConfig(), narrow, GPU, torch.bfloat16).attention_backend == "reference"
    with pytest.raises(ConfigError, match=r"needs a head_dim that is a multiple of 8 from 64 to 256, but .* is 32;"):
        choose(EngineConfig(attention_backend="triton"), narrow, GPU, torch.bfloat16)


def test_every_value_says_what_it_does():
    for name, axis in AXES.items():
        assert axis.about
        assert {axis.cpu, axis.cuda} <= axis.values.keys()
        for value, about in axis.values.items():
            assert 20 < len(about) < 120, (name, value)
