"""The values that are kernels: through the interpreter on a CPU for a few tokens, whole on a GPU."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch program uses

from engine import LLM, ConfigError, SamplingParams
from engine.ops.interface import Linear
from engine.ops.triton_ops import TritonOps
from engine.variants.choice import AXES, NEEDS_TRITON
from kernels import reference, shaping
from kernels.rows import Shaping
from tests.engine.checkpoints import FAMILIES, fit, hf_generate, random_prompts
from tests.pairwise import pairwise

ALL_KERNELS = {"attention_backend": "triton", "ops": "triton"}
FORMS = [
    {"attention_backend": "triton"},
    {"ops": "triton"},
    *({"kv_append": value} for axis, value in sorted(NEEDS_TRITON) if axis == "kv_append"),
    *({**ALL_KERNELS, "kv_append": value} for value in AXES["kv_append"].values),
    *({**ALL_KERNELS, "block_tables": value} for value in AXES["block_tables"].values),
    {**ALL_KERNELS, "block_tables": "in_graph", "kv_append": "fused", "overlap": "on"},
    {**ALL_KERNELS, "inputs": "per_tensor", "sampler": "item_loop"},
    {**ALL_KERNELS, "dtype": "float16"},
]


def few_tokens(checkpoints, family, params, prompts, **options):
    options = {"device": "cpu", "dtype": "float32", "num_blocks": 12, "max_num_seqs": 4, "max_model_len": 64} | options
    llm = LLM(checkpoints.path(family, 64), **options)
    outputs = [output.token_ids for output in llm.generate(prompts, params)]
    llm.core.check_integrity()
    return outputs


PROMPTS = random_prompts([15, 1], 1)
# On a GPU.
LENGTHS = (1, 15, 16, 31, 33, 60)
NEW_TOKENS = 24


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: these run on it, below")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_through_the_interpreter(checkpoints, family, form):
    wanted = [hf_generate(checkpoints.hf(family, 64), prompt, 3)[0] for prompt in PROMPTS]
    assert few_tokens(checkpoints, family, SamplingParams(max_tokens=3), PROMPTS, **form) == wanted


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: these run on it, below")
def test_sampling_kernels_draw_what_torch_draws(checkpoints):
    params = [SamplingParams(max_tokens=3, temperature=t, seed=s) for t, s in ((0.7, 1), (0.0, 2))]
    wanted = few_tokens(checkpoints, "llama", params, PROMPTS)
    assert wanted != few_tokens(checkpoints, "llama", SamplingParams(max_tokens=3), PROMPTS)
    assert few_tokens(checkpoints, "llama", params, PROMPTS, ops="triton") == wanted
    assert few_tokens(checkpoints, "llama", params, PROMPTS, overlap="on") == wanted
    assert few_tokens(checkpoints, "llama", params, PROMPTS, overlap="on", ops="triton") == wanted
    assert few_tokens(checkpoints, "llama", params, PROMPTS, sampler="item_loop") == wanted
    assert few_tokens(checkpoints, "llama", params, PROMPTS, mode="naive", ops="triton") == wanted


SHAPED = [
    SamplingParams(max_tokens=3, temperature=0.7, seed=1, top_k=9, top_p=0.9, min_p=0.01),
    SamplingParams(max_tokens=3, repetition_penalty=1.7, frequency_penalty=0.5, logit_bias={5: 2.0, 9: -3.0}),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: these run on it, below")
@pytest.mark.parametrize("form", [{}, {"overlap": "on"}])
def test_kernels_that_change_logits_draw_what_torch_draws(checkpoints, form):
    wanted = few_tokens(checkpoints, "llama", SHAPED, PROMPTS, **form)
    assert few_tokens(checkpoints, "llama", SHAPED, PROMPTS, ops="triton", **form) == wanted


SHAPED_FORMS = [
    {"block_tables": "resident", "cuda_graph": "off", "sampler": "item_loop", "inputs": "packed_pinned"},
    {"block_tables": "resident", "cuda_graph": "off", "sampler": "batched"},
    {"block_tables": "resident", "cuda_graph": "off", "sampler": "on_device"},
    {"block_tables": "in_graph", "cuda_graph": "off"},
    {"cuda_graph": "buckets", "graph_sampling": "outside", "overlap": "off"},
    {"cuda_graph": "buckets", "graph_sampling": "inside", "overlap": "on"},
    {"cuda_graph": "exact", "graph_sampling": "inside", "overlap": "off"},
    {"ops": "torch", "block_tables": "resident", "cuda_graph": "off"},
]


@pytest.mark.gpu
def test_every_form_of_a_step_changes_logits_alike_on_gpu(checkpoints):
    """What is chosen is by far the likeliest, or drawn with one seed from logits that differ in their last bits."""
    params = [dataclasses.replace(one, max_tokens=NEW_TOKENS, logprobs=4) for one in SHAPED * 3]
    prompts = random_prompts(LENGTHS, 7)
    found = []
    for form in SHAPED_FORMS:
        llm = LLM(
            checkpoints.path("llama", 64), device="cuda", dtype="float32", num_blocks=256, max_num_seqs=16, **form
        )
        found.append(llm.generate(prompts, params))
    for outputs in found[1:]:
        same = [one.token_ids == first.token_ids for one, first in zip(outputs, found[0], strict=True)]
        # A draw between two equals may go either way; of six outputs five agree.
        assert sum(same) >= 5, same
        for one, first in zip(outputs, found[0], strict=True):
            assert one.logprobs[0].top.keys() == first.logprobs[0].top.keys()
            assert one.logprobs[0].logprob == pytest.approx(first.logprobs[0].logprob, abs=1e-3)


@pytest.mark.gpu
def test_samples_of_a_large_vocabulary_are_those_of_the_reference_on_gpu():
    rows, vocab = 64, 151_936
    scores = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(2)).mul_(3).cuda()
    ask = shaping_of(rows, "cuda")
    want, got = scores.clone(), scores.clone()
    reference.keep_likely(want, ask)
    shaping.keep_likely(got, ask)
    differ = (want != got).sum(1)
    # Sums in fp32 may put the last token that remains on either side.
    assert differ.max() <= 1
    assert ((want > -torch.inf).sum(1) > 0).all()


def shaping_of(rows, device):
    each = {
        "temperatures": [0.7, 1.0, 1.3, 2.0],
        "top_k": [0, 50, 1000, 0],
        "top_p": [0.9, 1.0, 0.8, 0.3],
        "min_p": [0.0, 0.0, 0.01, 0.1],
    }
    made = {name: torch.zeros(rows, dtype=torch.int32, device=device) for name in Shaping._fields}
    for name, values in each.items():
        dtype = torch.int32 if name == "top_k" else torch.float32
        made[name] = torch.tensor(values, dtype=dtype, device=device).repeat(rows // 4)
    for name in ("repetition", "presence", "frequency"):
        made[name] = made[name].float()
    return Shaping(**made)


def test_forms_of_append_say_when_they_do_something_else(checkpoints, caplog):
    params = SamplingParams(max_tokens=3)
    options = {"dtype": "float32", "num_blocks": 12}
    llm = LLM(checkpoints.path("gpt2", 64), **options, kv_append="triton_full_batch")
    llm.generate(PROMPTS, params)
    assert llm.core.runner.notes == {"triton_identity_pos, where offsets in blocks differ": 2}
    assert [record.message for record in caplog.records] == [
        "kv_append does triton_identity_pos, where offsets in blocks differ"
    ]
    llm.generate(PROMPTS[:1], params)
    assert llm.core.runner.notes.total() == 2
    llm = LLM(checkpoints.path("gpt2", 64), **options, kv_append="triton", kv_append_min_batch=2)
    llm.generate(PROMPTS, params)
    assert not llm.core.runner.notes
    llm.generate(PROMPTS[:1], params)
    assert llm.core.runner.notes == {"torch_indexed, for batches under 2": 2}


# On a GPU: every value, exact where float64 says that the choice is clear.

CUDA_CASES = pairwise(
    {
        "family": FAMILIES,
        **{axis: list(values.values) for axis, values in AXES.items()},
        "prefix_cache": [True, False],
        "chunked_prefill": [True, False],
        "max_num_batched_tokens": [8192, 24],
        "decode_first": [False, True],
        "block_size": [16, 64],
        "tight": [False, True],
    }
)
CLEAR_GAP = 1e-4


@pytest.fixture(scope="session")
def cuda_oracle(checkpoints):
    made = {}

    def of(family):
        if family not in made:
            prompts = random_prompts(LENGTHS, 7)
            model = checkpoints.hf(family, 64, device="cuda")
            made[family] = prompts, [hf_generate(model, prompt, NEW_TOKENS)[0] for prompt in prompts]
        return made[family]

    return of


def float64_gap(checkpoints, family, tokens):
    """How far apart the two best logits after these tokens are, in float64."""
    model = checkpoints.hf(family, 64, dtype=torch.float64, device="cuda")
    best = model(torch.tensor([tokens], device="cuda")).logits[0, -1].topk(2).values
    return (best[0] - best[1]).item()


def assert_clear_choices_equal(checkpoints, family, prompts, got, wanted, record_property):
    """Tokens are equal up to the first whose choice is not clear; how many were not, the summary says."""
    unclear = 0
    for prompt, ours, theirs in zip(prompts, got, wanted, strict=True):
        first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
        if first is not None:
            gap = float64_gap(checkpoints, family, prompt + ours[:first])
            assert gap < CLEAR_GAP, f"token {first} of a prompt of {len(prompt)} differs, with a gap of {gap}"
            unclear += 1
    record_property("outputs", len(prompts))
    record_property("unclear", unclear)


def on_gpu(checkpoints, family, prompts, tokens, **options):
    options = {"device": "cuda", "dtype": "float32", "num_blocks": 256, "max_num_seqs": 16} | options
    llm = LLM(checkpoints.path(family, 64), **options)
    outputs = [output.token_ids for output in llm.generate(prompts, SamplingParams(max_tokens=tokens))]
    llm.core.check_integrity()
    return llm, outputs


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_on_gpu(checkpoints, cuda_oracle, family, record_property):
    assert not torch.backends.cuda.matmul.allow_tf32
    prompts, wanted = cuda_oracle(family)
    _, got = on_gpu(checkpoints, family, prompts, NEW_TOKENS)
    assert_clear_choices_equal(checkpoints, family, prompts, got, wanted, record_property)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("axis", "value"), [(axis, value) for axis, v in AXES.items() for value in v.values])
def test_each_value_of_each_axis_on_gpu(checkpoints, cuda_oracle, family, axis, value, record_property):
    prompts, wanted = cuda_oracle(family)
    llm, got = on_gpu(checkpoints, family, prompts, NEW_TOKENS, **{axis: value})
    assert getattr(llm.core.runner.variants, axis) == value
    assert_clear_choices_equal(checkpoints, family, prompts, got, wanted, record_property)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CUDA_CASES, ids=range(len(CUDA_CASES)))
def test_pairs_of_everything_on_gpu(checkpoints, cuda_oracle, case, record_property):
    case = dict(case)
    family, tight = case.pop("family"), case.pop("tight")
    fit(case)
    if case["attention_backend"] != "triton":
        case["attention_launch"] = "fixed"
    if tight:
        case["num_blocks"] = 128 // case["block_size"]
    prompts, wanted = cuda_oracle(family)
    _, got = on_gpu(checkpoints, family, prompts, NEW_TOKENS, **case)
    assert_clear_choices_equal(checkpoints, family, prompts, got, wanted, record_property)


@pytest.mark.gpu
def test_preemption_is_forced_on_gpu(checkpoints, cuda_oracle, record_property):
    prompts, wanted = cuda_oracle("llama")
    options = {"num_blocks": 12, "prefix_cache": False, "max_num_batched_tokens": 64}
    llm, got = on_gpu(checkpoints, "llama", prompts[:4] * 2, NEW_TOKENS, **options)
    assert llm.core.stats.preemptions
    assert_clear_choices_equal(checkpoints, "llama", prompts[:4] * 2, got, wanted[:4] * 2, record_property)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_logits_are_as_good_as_hugging_faces(checkpoints, family, record_property):
    """By relative L2 error to float64: at most 3 %, and at most 1.25 times that of Hugging Face's own bf16 model."""
    prompts, seen = random_prompts([33], 3), []
    llm, _ = on_gpu(checkpoints, family, prompts, 1, dtype="bfloat16", cuda_graph="off")
    model = llm.core.runner._machine.model
    logits = type(model).logits
    model.logits = lambda hidden: seen.append(logits(model, hidden)) or seen[-1]
    tokens = llm.generate(prompts, SamplingParams(max_tokens=40))[0].token_ids
    ours = torch.cat(seen).double()
    ids = torch.tensor([prompts[0] + tokens[:-1]], device="cuda")
    with torch.no_grad():
        exact, theirs = (
            checkpoints.hf(family, 64, dtype=dtype, device="cuda")(ids).logits[0, len(prompts[0]) - 1 :].double()
            for dtype in (torch.float64, torch.bfloat16)
        )
    errors = [((x - exact).norm() / exact.norm()).item() for x in (ours, theirs)]
    record_property("bf16", f"{family}: ours {errors[0]:.4f}, Hugging Face's {errors[1]:.4f}")
    assert errors[0] < 0.03
    assert errors[0] < 1.25 * errors[1]


@pytest.mark.gpu
def test_sampling_on_gpu_depends_on_seed_and_position_alone(checkpoints):
    prompts = random_prompts(LENGTHS, 7)
    params = [SamplingParams(max_tokens=20, temperature=0.8, seed=i) for i in range(len(prompts))]
    outputs = []
    for form in ({}, {"sampler": "batched"}, {"sampler": "item_loop"}, {"ops": "torch"}, {"num_blocks": 12}):
        options = {"device": "cuda", "dtype": "float32", "num_blocks": 256, "max_num_seqs": 16} | form
        llm = LLM(checkpoints.path("qwen2", 64), **options)
        outputs.append([output.token_ids for output in llm.generate(prompts, params)])
    # Logits of other batch shapes differ in their last bits, which can turn a draw; hardly ever.
    for other in outputs[1:]:
        assert sum(a != b for a, b in zip(outputs[0], other, strict=True)) <= 1


@pytest.mark.gpu
def test_memory_is_sized_after_a_warm_up(checkpoints, monkeypatch):
    # A GPU of 20 GiB that this process has for itself, whatever else runs beside it; 1 GiB is another's.
    total, gib = 20 * 2**30, 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (total - gib - torch.cuda.memory_reserved(), total))
    torch.cuda.empty_cache()
    llm, _ = on_gpu(checkpoints, "llama", [[1]], 1, num_blocks=None, gpu_memory_utilization=0.2)
    assert 2.9 * gib < torch.cuda.max_memory_allocated() <= 3 * gib
    assert llm.core.runner.cache.nbytes > 2.5 * gib
    with pytest.raises(ConfigError, match=r"^gpu_memory_utilization=0.05 leaves no memory for the cache beside"):
        on_gpu(checkpoints, "llama", [[1]], 1, num_blocks=None, gpu_memory_utilization=0.05)
    with pytest.raises(ConfigError, match=r"^the GPU's memory does not hold the weights, a step's activations and"):
        on_gpu(checkpoints, "llama", [[1]], 1, num_blocks=10**8)


SERVED = [
    *({"cuda_graph": graph, "overlap": overlap} for graph in ("exact", "buckets") for overlap in ("off", "on")),
    {"cuda_graph": "buckets", "graph_sampling": "outside"},
    {"cuda_graph": "off", "block_tables": "in_graph"},
    {"cuda_graph": "exact", "block_tables": "resident"},
    {"cuda_graph": "buckets", "block_tables": "staged_pinned"},
]


@pytest.mark.gpu
@pytest.mark.parametrize("form", SERVED, ids=lambda form: "-".join(form.values()))
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_replays_serve_who_joins_ends_and_leaves_on_gpu(checkpoints, cuda_oracle, family, form, record_property):
    prompts, wanted = cuda_oracle(family)
    options = {"device": "cuda", "dtype": "float32", "num_blocks": 64, "max_num_seqs": 5} | form
    llm = LLM(checkpoints.path(family, 64), **options)
    got, coming, step = {}, list(range(len(prompts))), 0
    llm.add_request([7] * 9, SamplingParams(max_tokens=90), "given up")
    while coming or llm.has_work:
        if coming and step % 3 == 0:
            i = coming.pop(0)
            llm.add_request(prompts[i], SamplingParams(max_tokens=NEW_TOKENS), str(i))
        if step == 14:
            llm.abort("given up")
        for increment in llm.step():
            got.setdefault(increment.request_id, []).extend(increment.token_ids)
        step += 1
    llm.core.check_integrity()
    ours = [got[str(i)] for i in range(len(prompts))]
    assert_clear_choices_equal(checkpoints, family, prompts, ours, wanted, record_property)


@pytest.mark.parametrize("kind", ["gelu_new", "gelu"])
def test_a_gelu_after_a_product_is_of_its_kind(kind):
    # Where the two kinds are furthest apart, and half precision still tells them from each other.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = -torch.linspace(1.5, 3, 64, device=device, dtype=torch.float16).repeat(16, 1)
    identity, bias = torch.eye(64, device=device, dtype=torch.float16), torch.zeros_like(x[0])
    found = TritonOps().linear_gelu(x, Linear(identity, bias), kind).float()
    by_tanh, by_erf = (F.gelu(x.float(), approximate=one) for one in ("tanh", "none"))
    of_kind, other = (by_tanh, by_erf) if kind == "gelu_new" else (by_erf, by_tanh)
    assert (of_kind - other).abs().max() > 4e-4
    assert (found - of_kind).abs().max() < 1e-4
