"""Transformers' own code over the paged cache, token by token; and a sentence for whatever cannot be served."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine import LLM, ConfigError, EngineConfig, ModelError, SamplingParams
from engine.models import hf_model
from engine.variants.choice import choose
from tests.engine import hf_models
from tests.engine.checkpoints import random_prompts

# Of the kinds in the README's table: one for each thing that differs, since each takes seconds.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "opt", "cohere", "phi3", "gemma", "olmo2")]
SERVED = ["gpt_neox", "mixtral", "gemma3_text", *SLOW]
NONE = "none of its layers attends through transformers' interface, and attention of ours would never be called"
REFUSED = {
    "gemma2": "it asks attention for softcap, and no kernel here does that",
    "gpt_oss": "it asks attention for s_aux, and no kernel here does that",
    "bloom": NONE,
    "falcon": NONE,
    "mamba": NONE,
    "jamba": "its 3 layers call attention 1 times, and what the others keep of a text is not keys and values",
    "deepseek_v3": "its keys and values are not of one size (4 x 24/16), and a block of the cache has one for all",
    "llama, dynamic rope": "its rope_type is 'dynamic', and such a rotation changes keys that are cached already",
}
PROMPTS = random_prompts([1, 3, 9, 17, 30], 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folders = {}

    def of(name):
        if name not in folders:
            folders[name] = hf_models.make_checkpoint(name, tmp_path_factory.mktemp("hf"))
        return folders[name]

    return of


def check(path, prompts=PROMPTS, **options):
    llm = hf_models.load(path, **options)
    outputs = llm.generate(prompts, SamplingParams(max_tokens=12))
    assert [output.token_ids for output in outputs] == hf_models.theirs(path, prompts, 12)
    llm.core.check_integrity()
    return llm


@pytest.mark.parametrize("name", SERVED)
def test_served(made, name):
    check(made(name))


@pytest.mark.parametrize(
    "options",
    [
        {"block_tables": "in_graph", "overlap": "on"},
        {"max_num_batched_tokens": 8, "num_blocks": 14, "prefix_cache": False},
        {"kv_append": "torch_indexed", "sampler": "item_loop"},
    ],
    ids=str,
)
def test_served_in_every_form(made, options):
    check(made("gemma3_text"), **options)


def test_a_prefix_is_found(made):
    llm = check(made("phi3"))
    again = llm.generate(PROMPTS, SamplingParams(max_tokens=12))
    assert [output.num_cached_prompt for output in again] == [0, 0, 8, 16, 28]
    assert [output.token_ids for output in again] == hf_models.theirs(made("phi3"), PROMPTS, 12)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(made, name):
    with pytest.raises(ModelError) as raised:
        hf_models.load(made(name))
    kind = name.partition(",")[0]
    start = f"this {kind} model cannot be run by attention_backend='hf': "
    assert str(raised.value).startswith(start)
    assert "\n" not in str(raised.value)
    assert str(raised.value) == start + REFUSED[name]


def test_random_weights_of_a_preset(capsys):
    llm = LLM("tiny-llama", load_format="dummy", attention_backend="hf", device="cpu", num_blocks=32)
    again = LLM("tiny-llama", load_format="dummy", attention_backend="hf", device="cpu", num_blocks=32)
    outputs = [one.generate([1, 2, 3], SamplingParams(max_tokens=8))[0].token_ids for one in (llm, again)]
    assert outputs[0] == outputs[1]
    assert not capsys.readouterr().err


def test_graphs_are_refused(made):
    config = EngineConfig(attention_backend="hf", cuda_graph="exact")
    spec = hf_models.load(made("gpt2")).core.runner.spec
    with pytest.raises(ConfigError, match="cuda_graph='exact' cannot have attention_backend='hf'"):
        choose(config, spec, torch.device("cpu"), torch.float32, simulated=True)


# The probe sees what no keyword tells.


class Neighbours(torch.nn.Module):
    """A layer's MLP that also looks at the token before, whichever text that belongs to."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, x):
        return self.mlp(x + 0.5 * x.roll(1, 1))


def spoil(model):
    model.model.layers[1].mlp = Neighbours(model.model.layers[1].mlp)


def forget_positions(model):
    inner, forward = model.model, model.model.forward

    def forgetful(*args, position_ids=None, **more):
        del position_ids
        return forward(*args, **more)

    inner.forward = forgetful


@pytest.mark.parametrize("change", [spoil, forget_positions])
def test_what_mixes_texts_is_seen(made, change):
    model = AutoModelForCausalLM.from_pretrained(made("phi3"), dtype=torch.float32, attn_implementation="eager").eval()
    change(model)
    with pytest.raises(ModelError, match="two texts in one row come out otherwise than one by one"):
        hf_model.HFModel(model, hf_model.outline(model.config))


def test_a_window_that_attention_is_not_told_of_is_seen():
    shape = hf_models.COMMON | {"layer_types": ["sliding_attention"] * 3}
    config = AutoConfig.for_model("llama", **shape)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(ModelError, match="some of its layers see a window, and they do not tell attention"):
        hf_model.HFModel(model, hf_model.outline(config))
