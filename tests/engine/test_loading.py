"""Checkpoints in every form they come in, and what is said of those that cannot be run."""

import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import LLM, ConfigError, ModelError, SamplingParams
from engine.block_manager import BlockManager
from engine.device_loop import DeviceLoop
from engine.kv_cache import KVCache
from engine.loading import allocate_what_fits, check_name_clash, find_model
from engine.models.families import read_spec
from engine.models.presets import PRESETS, preset_config
from tests.engine.checkpoints import FAMILIES, hf_generate, make_model, random_prompts

PROMPTS = random_prompts([5, 19], 0)
PARAMS = SamplingParams(max_tokens=6)


def load(folder, **options):
    return LLM(str(folder), **{"device": "cpu", "num_blocks": 32, "max_num_seqs": 4} | options)


def tokens(folder, **options):
    return [output.token_ids for output in load(folder, **options).generate(PROMPTS, PARAMS)]


@pytest.fixture
def copy(checkpoints, tmp_path):
    """A checkpoint that a test may spoil."""

    def of(family):
        return Path(shutil.copytree(checkpoints.path(family), tmp_path / family))

    return of


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_and_whole_checkpoints_are_one(checkpoints, family, tmp_path):
    make_model(family).save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert tokens(tmp_path) == tokens(checkpoints.path(family))


def test_names_with_and_without_the_prefix_of_the_whole_model(checkpoints, copy):
    folder = copy("gpt2")

    def as_openai_saved_it(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)

    edit_tensors(folder, as_openai_saved_it)
    assert tokens(folder) == tokens(checkpoints.path("gpt2"))


def test_heads_tied_and_apart(checkpoints, copy, tmp_path):
    tied = copy("qwen3")
    edit_tensors(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert tokens(tied) == tokens(checkpoints.path("qwen3"))
    model = make_model("gpt2", tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "apart")
    wanted = [hf_generate(model, prompt, 6)[0] for prompt in PROMPTS]
    assert tokens(tmp_path / "apart") == wanted != tokens(checkpoints.path("gpt2"))


ROPES = {
    "default": {"rope_theta": 500.0},
    "linear": {"rope_theta": 10000.0, "factor": 4.0},
    "yarn": {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32},
}


@pytest.mark.parametrize("kind", ROPES)
def test_ropes_as_transformers_has_them(kind, tmp_path):
    model = make_model("mistral", rope_parameters={"rope_type": kind, **ROPES[kind]})
    model.save_pretrained(tmp_path)
    assert tokens(tmp_path) == [hf_generate(model, prompt, 6)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "quick_gelu"])
def test_activations_of_gpt2(activation, tmp_path):
    model = make_model("gpt2", activation_function=activation, scale_attn_weights=False, n_inner=80)
    model.save_pretrained(tmp_path)
    assert tokens(tmp_path) == [hf_generate(model, prompt, 6)[0] for prompt in PROMPTS]


def test_a_hub_id_is_found_in_the_cache(checkpoints, tmp_path, monkeypatch):
    cached = tmp_path / "models--someone--tiny"
    shutil.copytree(checkpoints.path("llama"), cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert tokens("someone/tiny") == tokens(checkpoints.path("llama"))
    with pytest.raises(ModelError, match=r"^the checkpoint 'someone/else' could not be had from the hub \(.*\); give"):
        find_model("someone/else", "auto")


def test_tokens_that_end_a_text_come_from_the_generation_config(checkpoints, copy):
    folder = copy("llama")
    first = tokens(checkpoints.path("llama"))
    ends = [first[0][2], first[1][4]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert tokens(folder) == [first[0][:3], first[1][:5]]
    unending = load(folder).generate(PROMPTS, SamplingParams(max_tokens=6, ignore_eos=True))
    assert [output.token_ids for output in unending] == first


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("tiny")])
def test_presets_run_with_random_weights(preset):
    outputs = [tokens(preset, load_format="dummy", seed=seed) for seed in (0, 0, 1)]
    assert outputs[0] == outputs[1] != outputs[2]


def test_presets_are_what_they_are_named_after():
    gpt2, qwen3 = (read_spec(preset_config(name)) for name in ("gpt2", "qwen3-0.6b"))
    assert (gpt2.num_layers, gpt2.num_heads, gpt2.head_dim, gpt2.max_positions) == (12, 12, 64, 1024)
    assert (gpt2.vocab_size, gpt2.activation, gpt2.tied) == (50257, "gelu_new", True)
    assert (qwen3.num_layers, qwen3.num_heads, qwen3.num_kv_heads, qwen3.head_dim) == (28, 16, 8, 128)
    assert (qwen3.hidden_size, qwen3.intermediate_size, qwen3.qk_norm, qwen3.tied) == (1024, 3072, True, True)


def test_random_weights_for_a_folder_with_a_config_alone(checkpoints, tmp_path):
    shutil.copy(Path(checkpoints.path("qwen2")) / "config.json", tmp_path)
    assert len(tokens(tmp_path, load_format="dummy")[0]) == 6


# What cannot be run.


def fails(folder, message, error=ModelError, **options):
    with pytest.raises(error, match=message):
        load(folder, **options)


def test_a_missing_tensor(copy):
    folder = copy("llama")
    edit_tensors(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    fails(folder, r"has no tensor 'layers.1.mlp.up_proj.weight'; the checkpoint is incomplete or of another model$")


def test_a_misshaped_tensor(copy):
    folder = copy("gpt2")
    edit_tensors(folder, lambda t: t.update({"transformer.h.2.mlp.c_fc.weight": torch.zeros(64, 100)}))
    fails(
        folder, r"model.safetensors: h.2.mlp.c_fc.weight has shape \[64, 100\], but config.json asks for \[64, 256\]$"
    )


def test_a_tensor_that_the_config_has_no_place_for(copy):
    folder = copy("llama")
    edit_json(folder / "config.json", attention_bias=False)
    fails(folder, r"has a tensor 'layers.0.self_attn.k_proj.bias' and 11 more that config.json has no place for$")


def test_shards_that_are_not_there(tmp_path):
    make_model("mistral").save_pretrained(tmp_path, max_shard_size="60KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    fails(tmp_path, rf"names {gone.name}, which is not there; the checkpoint is incomplete$")
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    fails(tmp_path, r"model.safetensors.index.json is not an index of shards: ")


def test_files_that_are_not_what_they_should_be(copy):
    folder = copy("qwen2")
    (folder / "model.safetensors").write_bytes(b"torch.save made this")
    fails(folder, r"model.safetensors is not a readable safetensors file: ")
    (folder / "model.safetensors").unlink()
    fails(folder, r"has no model.safetensors and no index of shards; save the model with save_pretrained")
    (folder / "generation_config.json").write_text("{")
    fails(folder, r"generation_config.json is not JSON: ")
    (folder / "config.json").write_text("{")
    fails(folder, r"config.json cannot be read: ")
    (folder / "config.json").unlink()
    fails(folder, r"has no config.json; a checkpoint in Hugging Face's layout has one$")


def test_paths_that_lead_nowhere(checkpoints, tmp_path):
    fails(tmp_path / "nowhere", rf"^there is no folder {tmp_path}/nowhere$")
    fails(Path(checkpoints.path("gpt2")) / "config.json", r"config.json is a file; a checkpoint is the folder with it")
    fails("a model", r"^'a model' is neither a folder nor a hub id; give the folder of a checkpoint")


def test_presets_without_random_weights():
    fails("tiny-llama", r"^'tiny-llama' is a preset, which has random weights: add load_format='dummy'$")


def test_models_that_are_not_built(copy):
    folder = copy("llama")
    edit_json(folder / "config.json", hidden_act="gelu")
    fails(
        folder, r"^this llama model cannot be run: its activation is 'gelu', and only 'silu' is built for gated MLPs$"
    )
    edit_json(folder / "config.json", hidden_act="silu", quantization_config={"quant_method": "fp8"})
    fails(folder, r"^this llama model cannot be run: its weights are quantised, and only fp32, fp16 and bf16 weights")
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    edit_json(folder / "config.json", quantization_config=None, rope_parameters=rope)
    fails(folder, r"^this llama model cannot be run: its rope_type is 'dynamic', and such a rotation changes keys that")


def test_families_that_are_not_built(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "falcon"}')
    fails(tmp_path, r"^models of type 'falcon' are not supported; there are gpt2, llama, mistral, qwen2, qwen3$")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2000"}')
    fails(tmp_path, r"config.json cannot be read: .*gpt2000")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "add_cross_attention": true}')
    fails(
        tmp_path, r"^this gpt2 model cannot be run: it has cross attention, and there is no encoder here to attend to$"
    )


def test_an_activation_that_is_not_built(copy):
    folder = copy("gpt2")
    edit_json(folder / "config.json", activation_function="relu")
    fails(folder, r"^the model's activation 'relu' is not built; there are gelu, ", error=ConfigError)


def test_a_byte_tokenizer_needs_ids_for_bytes(tmp_path):
    make_model("gpt2", vocab_size=200).save_pretrained(tmp_path)
    fails(tmp_path, r"^a byte tokenizer needs 256 ids, but the model has 200; name another tokenizer$", ConfigError)


def test_a_tokenizer_that_cannot_be_read(checkpoints, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    fails(
        checkpoints.path("gpt2"), rf"^the tokenizer of {tmp_path} cannot be read \(.*\); name", tokenizer=str(tmp_path)
    )


def test_hugging_faces_kernels_package_is_told_of(monkeypatch):
    check_name_clash()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"kernels": "0.12.0"}[name])
    with pytest.raises(ModelError, match=r"^Hugging Face's package `kernels` 0.12.0 is installed here .* uninstall it"):
        check_name_clash()


# Memory


def test_where_memory_does_not_hold_the_cache_a_smaller_one_is_made(caplog):
    tried, said = [], []

    def allocate(blocks):
        tried.append(blocks)
        if blocks > 800:
            raise torch.OutOfMemoryError("no")

    allocate_what_fits(allocate, 1000, asked_for=False, say=said.append)
    assert tried == [1000, 900, 810, 729]
    assert said[0] == "the GPU's memory does not hold a cache of 1000 blocks beside CUDA graphs; trying 900"
    assert len(said) == len(caplog.records) == 3


@pytest.mark.parametrize(("blocks", "asked_for"), [(1000, True), (3, False)])
def test_where_it_does_not_hold_what_was_asked_for_or_anything_it_is_an_error(blocks, asked_for):
    def allocate(_):
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        allocate_what_fits(allocate, blocks, asked_for=asked_for, say=lambda _: None)


def test_a_cache_that_could_not_be_made_is_made_smaller(checkpoints, monkeypatch):
    """What the engine serves after two failures, one of them inside of what is made beside the cache, is right."""
    llm = load(checkpoints.path("gpt2"), block_tables="in_graph")
    wanted = tokens(checkpoints.path("gpt2"))
    runner, failures = llm.core.runner, iter([KVCache, DeviceLoop])

    def allocate(blocks):
        failing = next(failures, None)
        if failing is None:
            runner.reallocate(blocks)
            return
        with monkeypatch.context() as patch:
            patch.setattr(failing, "__init__", out_of_memory)
            runner.reallocate(blocks)

    allocate_what_fits(allocate, 30, asked_for=False, say=lambda _: None)
    assert runner.num_blocks == 24
    llm.core.blocks = BlockManager(24, llm.config.block_size)
    llm.core.scheduler.blocks = llm.core.blocks
    assert [output.token_ids for output in llm.generate(PROMPTS, PARAMS)] == wanted


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("no")
