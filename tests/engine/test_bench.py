"""The benchmarks: what their numbers mean, that every flag does something, and that the seeds' commands still run."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from itertools import islice, pairwise
from types import SimpleNamespace

import pytest
import torch
import transformers

from engine import LLM, ConfigError, RequestError
from engine.bench import kv_append, peers, report, results, session, streaming, trace
from engine.bench.cli import FORMS, cli, main
from engine.bench.measure import Counts, Ended, RequestTimes, Run, mean, measure, percentile
from engine.bench.options import PEERS, SchedulerOptions, StreamingOptions, apply_environment
from engine.bench.workload import make_prompts
from engine.command import Settings
from engine.sequence import FinishReason
from engine.timing import Timing
from engine.tokenizer import ByteTokenizer, Detokenizer
from tests.engine.commands import one_sentence

MODEL = ("--hf-model-id", "tiny-gpt2", "--load-format", "dummy", "--device", "cpu")
# Kernels run on a GPU, or else in Triton's interpreter.
KERNELS = (*MODEL[:-1], "cuda" if torch.cuda.is_available() else "cpu")
SMALL = ("--num-requests", "3", "--max-new-tokens", "4", "--warmup-runs", "0", "--repeat-runs", "1")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No variables from outside; and garbage waits, which takes longer to collect than a run of a tiny model."""
    for name in ("ROSELLM_TRITON_KV_APPEND", "ROSELLM_TRITON_KV_APPEND_MIN_BATCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("gc.collect", lambda *_: 0)


@pytest.fixture
def run(capsys):
    """Runs the command line; gives exit code, standard output and standard error."""

    def call(*arguments):
        code = main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def found(run):
    """The results of a small run, from its JSON."""

    def call(command, *flags):
        code, out, err = run(command, *MODEL, *SMALL, *flags, "--json", "-")
        assert (code, err) == (0, ""), err
        written = json.loads(out)
        assert written["schema"] == f"engine.bench.{command}/1"
        return written["results"]

    return call


@pytest.fixture
def fails(run):
    """The sentence with which a command fails."""

    def call(command, *flags):
        code, out, err = run(command, *flags)
        assert (code, out) == (2, "")
        return one_sentence(err, "engine.bench")

    return call


# What numbers mean ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "percent", "wanted"),
    [
        ([3.0], 50, 3.0),
        ([4.0, 1.0, 2.0, 3.0], 50, 2.5),
        ([4.0, 1.0, 2.0, 3.0], 0, 1.0),
        ([4.0, 1.0, 2.0, 3.0], 100, 4.0),
        ([10.0, 20.0, 30.0], 95, 29.0),
        ([float(i) for i in range(101)], 99, 99.0),
    ],
)
def test_percentiles_are_linear_between_neighbours(values, percent, wanted):
    assert percentile(values, percent) == pytest.approx(wanted)


def test_nothing_has_no_percentile_and_no_mean():
    assert percentile([], 50) != percentile([], 50)
    assert mean([]) != mean([])
    assert mean([1.0, 2.0, 6.0]) == 3.0


# Arrives at 10, waits until 11, has its first token at 12.5, then after 0.5, 1 and 2 seconds.
TIMING = Timing(arrived=10.0, admitted=11.0, first_token=12.5, tokens=[12.5, 13.0, 14.0, 16.0], finished=16.0)
TIMES = RequestTimes(
    num_tokens=4,
    queue_wait=1.0,
    prefill=1.5,
    ttft=2.5,
    tpot=3.5 / 3,
    itls=(0.5, 1.0, 2.0),
    latency=6.0,
)
ONE_TOKEN = Timing(arrived=1.0, admitted=1.0, first_token=3.0, tokens=[3.0], finished=3.0)


def test_times_of_a_request():
    assert RequestTimes.of(TIMING) == TIMES
    assert RequestTimes.of(ONE_TOKEN) == RequestTimes(1, 0.0, 2.0, 2.0, None, (), 2.0)


def counts(**values):
    zero = {
        "decodes": 0,
        "decode_seconds": 0.0,
        "wait_seconds": 0.0,
        "preemptions": 0,
        "queried_tokens": 0,
        "hit_tokens": 0,
        "notes": {},
    }
    return Counts(**zero | values)


def test_throughputs_count_every_token_the_first_included():
    run = Run(8.0, (TIMES, RequestTimes.of(ONE_TOKEN)), counts(decode_seconds=2.0))
    assert (run.completion_tokens, run.throughput, run.decode_throughput) == (5, 0.625, 2.5)
    assert Run(8.0, (TIMES,), counts()).decode_throughput != 2.0


def test_a_run_in_which_a_request_fails_is_no_result():
    stats = SimpleNamespace(decodes=0, decode_seconds=0.0, wait_seconds=0.0, preemptions=0)
    cache = SimpleNamespace(queried_tokens=0, hit_tokens=0)
    core = SimpleNamespace(stats=stats, prefix_cache_stats=cache, runner=SimpleNamespace(notes={}))
    ended = [Ended(TIMING, FinishReason.LENGTH), Ended(Timing(0.0), FinishReason.ERROR, "no token could be chosen")]
    with pytest.raises(
        RequestError, match=r"^1 of 2 requests ended with an error, the first: no token could be chosen$"
    ):
        measure(core, 5, lambda: (ended, []))


def test_a_run_counts_what_it_added():
    """An engine that has counted before; in the run it preempts twice and says a new thing three times."""
    stats = SimpleNamespace(decodes=5, decode_seconds=1.0, wait_seconds=0.25, preemptions=1)
    cache = SimpleNamespace(queried_tokens=100, hit_tokens=10)
    core = SimpleNamespace(stats=stats, prefix_cache_stats=cache, runner=SimpleNamespace(notes={"old": 4, "both": 1}))

    def serve():
        stats.decodes, stats.decode_seconds, stats.preemptions = 9, 1.5, 3
        stats.wait_seconds += 0.3
        cache.queried_tokens, cache.hit_tokens = 150, 30
        core.runner.notes.update(both=4, new=2)
        ended = [Ended(TIMING, FinishReason.LENGTH), Ended(TIMING, FinishReason.STOP)]
        return ended, [0.25, 0.5]

    found = measure(core, 5, serve)
    assert found.counts == Counts(4, 0.5, pytest.approx(0.3), 2, 50, 20, {"both": 3, "new": 2})
    assert found.counts.host_seconds_a_step == pytest.approx(0.05)
    assert found.requests == (TIMES, TIMES)
    # Both have 4 of 5 tokens; one of them because the context ended.
    assert found.cut_short == 1
    assert found.submit_lags == (0.25, 0.5)
    assert found.total_seconds > 0


# What is printed --------------------------------------------------------------------------------------------------

ABOUT = results.About(
    model="gpt2",
    dtype="bfloat16",
    device="a GPU",
    versions={"torch": "2", "triton": None},
    variants={"ops": "torch", "sampler": "batched"},
    config={
        "mode": "online",
        "load_format": "dummy",
        "max_num_seqs": 8,
        "prefix_cache": False,
        "num_blocks": 64,
        "block_size": 16,
    },
    requests={
        "num_requests": 2,
        "prompt_tokens": [1, 4],
        "max_new_tokens": 4,
        "temperature": 0.0,
        "stop_on_eos": False,
        "pretokenised": True,
    },
    flags={"prompt": "a"},
    environment=("X=1: y",),
)
# A request of each kind in each run: TTFT 2.5 and 2, TPOT 3.5/3 and none, latency 6 and 2 seconds.
REQUESTS = (TIMES, RequestTimes.of(ONE_TOKEN))
RUNS = (
    Run(8.0, REQUESTS, counts(decode_seconds=2.0), submit_lags=(0.0, 1.0)),
    Run(10.0, REQUESTS, counts(decode_seconds=4.0), submit_lags=(2.0, 3.0)),
)


def test_the_header_says_what_ran():
    clock = "tokenised before the clock starts"
    assert report.header(ABOUT).splitlines() == [
        "gpt2 (random weights), bfloat16, on a GPU",
        "torch 2, triton not installed",
        "variants: ops=torch sampler=batched",
        f"requests: 2 of 1 to 4 prompt tokens and 4 new ones, greedy, past the end of text, {clock}",
        "engine: online, 8 sequences a batch at most, prefix cache off, 64 blocks of 16",
        "environment: X=1: y",
    ]


def test_the_summary_of_scheduler_is_the_seeds():
    assert report.scheduler_summary(results.Result("scheduler", ABOUT, 1, RUNS)).splitlines() == [
        "=== online summary ===",
        "Warmup runs: 1",
        "Measured runs: 2",
        "Decode time p50/mean: 3.000000/3.000000 s",
        "Total time p50/mean: 9.000000/9.000000 s",
        # 5 tokens in 2 and in 4 seconds; in 8 and in 10.
        "Throughput(completion,decode) p50/mean: 1.88/1.88 tokens/s",
        "Throughput(completion,total) p50/mean: 0.56/0.56 tokens/s",
        "TTFT p50/mean: 2250.00/2250.00 ms",
        "TPOT p50/mean: 1166.67/1166.67 ms/token",
        "Latency p50/mean: 4000.00/4000.00 ms",
    ]


def test_what_numbers_do_not_show_is_said():
    runs = (
        Run(8.0, REQUESTS, counts(decodes=4, notes={"x": 3}, preemptions=1, queried_tokens=10, hit_tokens=4), 2),
        Run(8.0, REQUESTS, counts(decodes=4, notes={"x": 1}, preemptions=1, queried_tokens=10, hit_tokens=1)),
    )
    static = results.PeerRuns("hf-static", compiled=True, tokens=[5, 5], seconds=[16.0, 16.0])
    found = results.Result("scheduler", ABOUT, 0, runs, (static,), 2, "a b/t.json.gz")
    assert report.scheduler_summary(found).splitlines()[3:] == [
        # No decode step, no decode throughput.
        "Decode time p50/mean: 0.000000/0.000000 s",
        "Total time p50/mean: 8.000000/8.000000 s",
        "Throughput(completion,decode) p50/mean: -/- tokens/s",
        "Throughput(completion,total) p50/mean: 0.62/0.62 tokens/s",
        "TTFT p50/mean: 2250.00/2250.00 ms",
        "TPOT p50/mean: 1166.67/1166.67 ms/token",
        "Latency p50/mean: 4000.00/4000.00 ms",
        "Host time a decode step p50/mean: 0.000/0.000 ms, without waiting for tokens",
        "kv_append did x: in 4 of 8 decode steps",
        "Preemptions: 2, for want of cache blocks; their tokens were computed again",
        "Prefix cache hits: 5 of 20 tokens (25.0%)",
        "Cut short: 2 of 4 requests came to the end of the context before --max-new-tokens",
        "=== against Hugging Face's generate ===",
        "Tokens/s of the whole run, prefill included, without detokenising; runs took turns in one process.",
        "engine       p50/mean: 0.62/0.62 tokens/s",
        "hf-static    p50/mean: 0.31/0.31 tokens/s (engine / hf-static: 2.00x)",
        "2 graphs were compiled during measured runs, so peers were slower than they can be; raise --warmup-runs",
        "trace of one more run: a b/t.json.gz",
        "next: tracetool summary 'a b/t.json.gz'",
    ]


def test_the_summary_of_streaming():
    assert report.streaming_run(1, RUNS[0], False) == "run1 Throughput: 0.62 tokens/s | TPOT p50: 1166.67 ms/token"
    in_full = report.streaming_run(2, RUNS[1], True).splitlines()
    assert in_full[:2] == [
        "run2 Throughput: 0.50 tokens/s | TPOT p50: 1166.67 ms/token",
        "  Submit lag p50/p95/p99: 2500.00/2950.00/2990.00 ms",
    ]
    assert report.streaming_summary(results.Result("streaming", ABOUT, 1, RUNS)).splitlines() == [
        "avg  Throughput: 0.56 tokens/s",
        "=== online summary ===",
        "Warmup runs: 1",
        "Measured runs: 2",
        "Submit lag p50/p95/p99: 1500.00/2850.00/2970.00 ms",
        "Queue wait p50/p95/p99: 500.00/1000.00/1000.00 ms",
        "Prefill to first token p50/p95/p99: 1750.00/2000.00/2000.00 ms",
        "TTFT p50/p95/p99: 2250.00/2500.00/2500.00 ms",
        "TPOT p50/p95/p99: 1166.67/1166.67/1166.67 ms/token",
        "ITL p50/p95/p99: 1000.00/2000.00/2000.00 ms",
        "Latency p50/p95/p99: 4000.00/6000.00/6000.00 ms",
        "Throughput(completion,total) p50/mean: 0.56/0.56 tokens/s",
    ]


def test_json_has_everything_and_no_nan():
    runs = (Run(8.0, (RequestTimes.of(ONE_TOKEN),), counts()),)
    text = report.to_json([results.Result("scheduler", ABOUT, 1, runs)])
    (found,) = json.loads(text, parse_constant=pytest.fail)["results"]
    assert found["summary"]["tpot_seconds"] == {"count": 0, "mean": None, "p50": None, "p95": None, "p99": None}
    assert found["summary"]["decode_throughput"]["mean"] is None
    assert found["summary"]["ttft_seconds"]["p50"] == 2.0
    (one,) = found["runs"]
    assert one["requests"] == [
        {"num_tokens": 1, "queue_wait": 0.0, "prefill": 2.0, "ttft": 2.0, "tpot": None, "latency": 2.0}
    ]
    assert (one["total_seconds"], one["completion_tokens"], one["throughput"]) == (8.0, 1, 0.125)
    assert (found["config"], found["flags"]) == (ABOUT.config, ABOUT.flags)
    assert found["environment"] == ["X=1: y"]


# The seeds' commands ----------------------------------------------------------------------------------------------

SEEDS = {
    "000": """python -m rosellm.roseinfer.benchmark_scheduler \
  --hf-model-id gpt2 --device cuda \
  --prompt "Hello" --num-requests 64 --max-new-tokens 512 \
  --mode online --max-batch-size 64 \
  --no-stop-on-eos --no-prefix-cache --pretok \
  --warmup-runs 1 --repeat-runs 3 \
  --paged-attn""",
    "001": """python -m rosellm.roseinfer.benchmark_scheduler \
  --hf-model-id gpt2 --device cuda \
  --prompt "Hello" --num-requests 16 --max-new-tokens 256 \
  --mode online --max-batch-size 8 \
  --no-stop-on-eos --no-prefix-cache --pretok \
  --warmup-runs 1 --repeat-runs 3 \
  --paged-attn""",
    "002": """python -m rosellm.roseinfer.benchmark_streaming \
  --hf-model-id gpt2 --device cuda \
  --prompt 'Hello' --prompt-repeats '1,4' \
  --pretok --tokenize-workers 0 \
  --num-requests 128 --max-new-tokens 128 \
  --submit-interval-ms 0 \
  --max-batch-size 128 --prefill-max-batch-size 128 \
  --prefill-admission-policy fifo \
  --paged-attn --no-prefix-cache --no-stop-on-eos \
  --warmup-runs 1 --repeat-runs 3""",
    "003": """python -m rosellm.roseinfer.benchmark_scheduler \
--hf-model-id gpt2 --device cuda \
--prompt "Hello" --num-requests 256 --max-new-tokens 64 \
--mode online --max-batch-size 256 \
--no-stop-on-eos --no-prefix-cache --pretok \
--warmup-runs 1 --repeat-runs 3 \
--paged-attn --cuda-graph""",
    "003 append": "python scripts/bench_kv_append.py --batch-sizes 128,256,512,1024,2048",
}
NAMES = {
    "python -m rosellm.roseinfer.benchmark_scheduler": "scheduler",
    "python -m rosellm.roseinfer.benchmark_streaming": "streaming",
    "python scripts/bench_kv_append.py": "kv-append",
}
# What a CPU and a test's patience need; the last of two equal flags counts.
TOY = (*MODEL, "--num-requests", "4", "--max-new-tokens", "3", "--repeat-runs", "2", "--no-paged-attn")
NUMBER = r"\d+\.\d+"
BLOCK = rf"""=== online summary ===
Warmup runs: 1
Measured runs: 2
Decode time p50/mean: {NUMBER}/{NUMBER} s
Total time p50/mean: {NUMBER}/{NUMBER} s
Throughput\(completion,decode\) p50/mean: {NUMBER}/{NUMBER} tokens/s
Throughput\(completion,total\) p50/mean: {NUMBER}/{NUMBER} tokens/s
TTFT p50/mean: {NUMBER}/{NUMBER} ms
TPOT p50/mean: {NUMBER}/{NUMBER} ms/token
Latency p50/mean: {NUMBER}/{NUMBER} ms
"""
STREAMED = rf"""run1 Throughput: {NUMBER} tokens/s \| TPOT p50: {NUMBER} ms/token
run2 Throughput: {NUMBER} tokens/s \| TPOT p50: {NUMBER} ms/token
avg  Throughput: {NUMBER} tokens/s
=== online summary ===
"""


def seed(name):
    """A seed's command as it stands, its program's name changed."""
    (command,) = [SEEDS[name].replace(old, new) for old, new in NAMES.items() if SEEDS[name].startswith(old)]
    return shlex.split(command)


@pytest.mark.parametrize(("name", "wanted"), [("000", BLOCK), ("001", BLOCK), ("002", STREAMED)])
def test_the_seeds_commands_run(run, name, wanted):
    code, out, err = run(*seed(name), *TOY)
    assert (code, err) == (0, ""), err
    assert re.search(wanted, out)
    assert "variants: block_tables=resident" in out
    assert "tokenised before the clock starts" in out


@pytest.mark.parametrize("name", ["000", "001", "002", "003"])
def test_the_seeds_commands_as_they_stand_need_a_gpu(fails, name):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert fails(*seed(name), "--load-format", "dummy").startswith("device='cuda', but torch finds no GPU here")


def test_kv_append_times_a_gpu(fails):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert fails(*seed("003 append")) == "kv-append times a GPU, and torch finds none here"


# Each flag does something -----------------------------------------------------------------------------------------


def config(name, value):
    return lambda result: result["config"][name] == value


def requests(name, value):
    return lambda result: result["requests"][name] == value


SAME = [
    ("--bf16", lambda r: r["dtype"] == "bfloat16"),
    ("--load-format dummy", config("load_format", "dummy")),
    ("--tokenizer-name byte", config("tokenizer", "byte")),
    ("--seed 3", config("seed", 3)),
    ("--set block_tables=shared_pinned", lambda r: r["variants"]["block_tables"] == "shared_pinned"),
    ("--set dtype=float64", lambda r: r["dtype"] == "float64"),
    ("--max-batch-size 2", config("max_num_seqs", 2)),
    ("--no-prefix-cache", config("prefix_cache", False)),
    ("--mode offline", lambda r: r["mode"] == "offline"),
    ("--set mode=naive", lambda r: r["mode"] == "naive"),
    ("--no-paged-attn", config("attention_backend", "reference")),
    ("--prompt abc", requests("prompt_tokens", [3, 3])),
    ("--prompts a --prompts bcd", requests("prompt_tokens", [1, 3])),
    ("--prompt-tokens 7", requests("prompt_tokens", [7, 7])),
    ("--pretok", requests("pretokenised", True)),
    ("--num-requests 2", lambda r: len(r["runs"][0]["requests"]) == 2),
    ("--max-new-tokens 2", lambda r: r["runs"][0]["completion_tokens"] == 6),
    ("--no-stop-on-eos", requests("stop_on_eos", False)),
    ("--do-sample", requests("temperature", 1.0)),
    ("--do-sample --temperature 0.5 --top-k 0 --top-p 1.0", requests("temperature", 0.5)),
    ("--warmup-runs 1", lambda r: r["warmup_runs"] == 1),
    ("--repeat-runs 2", lambda r: len(r["runs"]) == 2),
]


@pytest.mark.parametrize(("flags", "holds"), SAME, ids=[flags for flags, _ in SAME])
@pytest.mark.parametrize("command", ["scheduler", "streaming"])
def test_flags_of_both(found, command, flags, holds):
    (plain,) = found(command)
    (result,) = found(command, *flags.split())
    assert holds(result)
    assert flags == "--load-format dummy" or not holds(plain)


STREAMING = [
    ("--prompt-repeats 1,4", requests("prompt_tokens", [5, 23])),
    ("--prompt-repeats 2 --prompt-tokens 3", requests("prompt_tokens", [6, 6])),
    ("--unique-prompts", requests("prompt_tokens", [7, 7])),
    ("--submit-interval-ms 2", lambda r: r["runs"][0]["total_seconds"] >= 0.004),
    ("--prefill-max-batch-size 2", config("prefill_max_batch_size", 2)),
    ("--prefill-max-tokens 5", config("prefill_max_tokens", 5)),
    ("--max-active-requests 2", config("max_active", 2)),
    ("--decode-first", config("decode_first", True)),
]


@pytest.mark.parametrize(("flags", "holds"), STREAMING, ids=[flags for flags, _ in STREAMING])
def test_flags_of_streaming(found, flags, holds):
    (result,) = found("streaming", *flags.split())
    assert holds(result)
    assert result["runs"][0]["completion_tokens"] == 12
    assert len(result["runs"][0]["submit_lags"]) == 3


def test_a_folder_instead_of_a_name(run, checkpoints):
    flags = ("--checkpoint-path", checkpoints.path("llama"), "--device", "cpu", *SMALL, "--prompt-tokens", "3")
    code, out, _ = run("scheduler", *flags)
    assert code == 0
    assert out.startswith(f"{checkpoints.path('llama')}, float32, on CPU, 1 thread\n")


def test_all_modes_one_after_another(found, run):
    naive, offline, online = found("scheduler", "--mode", "all")
    assert [one["mode"] for one in (naive, offline, online)] == ["naive", "offline", "online"]
    # One at a time, the last waits for all others.
    assert naive["runs"][0]["decodes"] == 9
    assert online["runs"][0]["decodes"] == 3
    out = run("scheduler", *MODEL, *SMALL, "--mode", "all")[1]
    assert re.findall("=== (.*) summary ===", out) == ["naive", "offline", "online"]


def test_each_run_begins_without_cached_prefixes_unless_they_are_kept(found, run):
    flags = ("--prompt-tokens", "40", "--warmup-runs", "1", "--repeat-runs", "2")
    (fresh,), (kept,) = (found("scheduler", *flags, *more) for more in ((), ("--keep-prefix-cache-across-runs",)))
    assert [one["hit_tokens"] for one in fresh["runs"]] == [0, 0]
    # Two full blocks of each of three prompts.
    assert [one["hit_tokens"] for one in kept["runs"]] == [96, 96]
    out = run("scheduler", *MODEL, *SMALL, *flags, "--keep-prefix-cache-across-runs")[1]
    assert "Prefix cache hits: 192 of 240 tokens (80.0%)" in out


def test_each_run_is_printed_where_it_is_wanted(run):
    plain, each = (run("scheduler", *MODEL, *SMALL, *more)[1] for more in ((), ("--print-per-run",)))
    line = rf"run1 Throughput: {NUMBER} tokens/s \| Decode time: .* s \| Total time: .* s \| TTFT p50: .* \| Latency"
    assert re.search(line, each)
    assert "run1" not in plain
    assert "\n  TTFT p50/p95/p99: " in run("streaming", *MODEL, *SMALL, "--print-per-run")[1]


def test_paged_attention_is_ours(run, fails, monkeypatch):
    wanted = (
        "attention_backend='triton' needs a GPU (or TRITON_INTERPRET=1, which is slow) (attention_backend comes from "
        "--paged-attn)"
    )
    if not torch.cuda.is_available():
        with monkeypatch.context() as without:
            without.delenv("TRITON_INTERPRET")
            assert fails("scheduler", *MODEL, "--paged-attn") == wanted
    small = ("--num-requests", "1", "--max-new-tokens", "2", "--warmup-runs", "0", "--repeat-runs", "1")
    code, out, _ = run("scheduler", *KERNELS, *small, "--paged-attn")
    assert code == 0
    assert " attention_backend=triton " in out


def test_a_request_that_the_context_ends_is_said(run):
    out = run("scheduler", *MODEL, *SMALL, "--prompt-tokens", "250", "--max-new-tokens", "20")[1]
    assert "Cut short: 3 of 3 requests came to the end of the context before --max-new-tokens" in out


# Each slip has its sentence ---------------------------------------------------------------------------------------

PLAIN = ("--hf-model-id", "x")
FAILURES = [
    ("scheduler", (), "give the model: one of --hf-model-id and --checkpoint-path"),
    (
        "scheduler",
        (*PLAIN, "--checkpoint-path", "."),
        "give the model: one of --hf-model-id and --checkpoint-path",
    ),
    (
        "scheduler",
        ("--checkpoint-path", "./nowhere"),
        "--checkpoint-path ./nowhere is not a folder; --hf-model-id takes names",
    ),
    (
        "scheduler",
        (*PLAIN, "--prompt", "a", "--prompt-tokens", "3"),
        "--prompt and --prompt-tokens each say what the prompts are; keep one of them",
    ),
    (
        "scheduler",
        (*PLAIN, "--temperature", "0.5"),
        "--temperature is for --do-sample; without it the likeliest token is taken",
    ),
    (
        "scheduler",
        (*PLAIN, "--do-sample", "--temperature", "0"),
        "--do-sample with --temperature 0 would not sample; leave both out, or raise it",
    ),
    ("scheduler", (*PLAIN, "--top-k", "5"), "--top-k is for --do-sample; without it the likeliest token is taken"),
    ("scheduler", (*PLAIN, "--top-p", "0.9"), "--top-p is for --do-sample; without it the likeliest token is taken"),
    (
        "scheduler",
        (*PLAIN, "--no-prefix-cache", "--keep-prefix-cache-across-runs"),
        "--no-prefix-cache leaves nothing for --keep-prefix-cache-across-runs to keep",
    ),
    ("scheduler", (*PLAIN, "--profile-dir", "x"), "--profile-dir is for --profile; add it"),
    (
        "scheduler",
        (*PLAIN, "--mode", "all", "--set", "mode=naive"),
        "mode is set twice, by --mode and by --set; keep one of them",
    ),
    (
        "scheduler",
        (*PLAIN, "--bf16", "--set", "dtype=float16"),
        "dtype is set twice, by --set dtype=float16 and by --bf16; keep one of them",
    ),
    (
        "scheduler",
        (*PLAIN, "--seed", "1"),
        "--seed changes nothing here: tokens are chosen greedily and weights come from a checkpoint",
    ),
    (
        "scheduler",
        (*PLAIN, "--prompt-tokens", "3", "--tokenizer-name", "byte"),
        "--prompt-tokens makes prompts of token ids, so --tokenizer-name would change nothing",
    ),
    (
        "scheduler",
        (*PLAIN, "--against", "hf-dynamic", "--do-sample"),
        "--against compares greedy runs; leave out --do-sample",
    ),
    (
        "scheduler",
        (*PLAIN, "--against", "hf-static", "--warmup-runs", "0"),
        "hf-static compiles in its first run; --against needs --warmup-runs 1 or more for it",
    ),
    (
        "scheduler",
        (*PLAIN, "--json", "nowhere/x.json"),
        "nowhere/x.json cannot be written: there is no folder nowhere; make it first",
    ),
    (
        "streaming",
        (*PLAIN, "--prefill-admission-lookahead", "4"),
        "--prefill-admission-lookahead belongs to --prefill-admission-policy pack; add it",
    ),
    (
        "streaming",
        (*PLAIN, "--prefill-force-fifo-every", "4"),
        "--prefill-force-fifo-every belongs to --prefill-admission-policy pack; add it",
    ),
    (
        "streaming",
        (*PLAIN, "--pretok", "--tokenize-workers", "2"),
        "--pretok leaves nothing for --tokenize-workers to do; 0 is what fits it",
    ),
    (
        "streaming",
        (*PLAIN, "--unique-prompts", "--prompt-tokens", "2"),
        "--prompt-tokens makes every prompt another, so --unique-prompts would change nothing",
    ),
    ("kv-append", ("--forms", "triton"), "--forms triton has nothing to be compared with; name another form after it"),
    (
        "kv-append",
        ("--build-index", "--graph"),
        "--build-index copies from pageable memory, which --graph cannot hold; keep one of them",
    ),
    (
        "kv-append",
        ("--forms", "triton,slot_mapping", "--block-size", "48"),
        "slot_mapping needs a power of two for --block-size, not 48",
    ),
]


@pytest.mark.parametrize(("command", "flags", "message"), FAILURES, ids=[message[:50] for *_, message in FAILURES])
def test_failures_are_one_sentence(fails, command, flags, message):
    assert fails(command, *flags) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("streaming", *PLAIN, "--prompt-repeats", "1,x"), "'1,x' is not a list of numbers, as in 1,4"),
        (("streaming", *PLAIN, "--prompt-repeats", "0"), "'0' holds a number under 1"),
        (("kv-append", "--forms", "triton,tritn"), "unknown form 'tritn'; did you mean 'triton'?"),
        (("scheduler", *PLAIN, "--against", "vllm"), "unknown peer 'vllm'; there are hf-dynamic, hf-static"),
        (("scheduler", *PLAIN, "--num-requests", "0"), "0 is not in the range x>=1"),
        (("streaming", *PLAIN, "--against", "hf-dynamic"), "No such option"),
    ],
)
def test_usage_errors(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_prompts_that_cannot_be_served(fails):
    assert fails("scheduler", *MODEL, *SMALL, "--set", "num_blocks=1", "--json", "-", "--prompt-tokens", "20").endswith(
        "prompt 0: 20 tokens of prompt and 4 new ones need 2 cache blocks, but there are 1; lower max_tokens or raise "
        "num_blocks"
    )


# Files ------------------------------------------------------------------------------------------------------------


def test_a_file_gets_json_and_the_terminal_text(run, fails, tmp_path):
    file = tmp_path / "found.json"
    code, out, _ = run("scheduler", *MODEL, *SMALL, "--json", file)
    assert code == 0
    assert "=== online summary ===" in out
    assert json.loads(file.read_text())["results"][0]["requests"]["num_requests"] == 3
    before = file.read_text()
    assert (
        fails("scheduler", *MODEL, *SMALL, "--json", file) == f"{file} exists already; name another file, or remove it"
    )
    assert file.read_text() == before


@pytest.mark.parametrize("command", ["scheduler", "streaming"])
def test_a_profile_is_a_new_file_with_the_engines_ranges(run, tmp_path, command):
    flags = (command, *MODEL, *SMALL, "--profile", "--profile-dir", tmp_path / "new" / "folder")
    outs = [run(*flags)[1] for _ in range(2)]
    paths = [tmp_path / "new" / "folder" / f"{command}-online{number}.json.gz" for number in ("", "-2")]
    for out, path in zip(outs, paths, strict=True):
        assert out.endswith(f"trace of one more run: {path}\nnext: tracetool summary {path}\n")
        done = subprocess.run(
            [sys.executable, "-m", "tracetool", "summary", path], capture_output=True, text=True, check=True
        )
        assert "decode_step" in done.stdout
        # Measured runs are not in it: two steps that admit or decode, and two more.
        assert re.search(r"^schedule +4 ", done.stdout, re.MULTILINE)


def test_a_folder_that_cannot_be_made(fails, tmp_path):
    (tmp_path / "file").write_text("")
    message = fails("scheduler", *MODEL, *SMALL, "--profile", "--profile-dir", tmp_path / "file")
    assert message == f"--profile-dir {tmp_path / 'file'} cannot be made: File exists; name another folder"


# Seed 003's variables ---------------------------------------------------------------------------------------------

SWITCH, LEAST = "ROSELLM_TRITON_KV_APPEND", "ROSELLM_TRITON_KV_APPEND_MIN_BATCH"
TRITON = {"kv_append": "triton"}
ENVIRONMENTS = [
    ({}, (), {}, []),
    ({SWITCH: "0"}, (), {"kv_append": "torch_indexed"}, [f"{SWITCH}=0: kv_append=torch_indexed"]),
    (
        {SWITCH: "1"},
        (),
        {**TRITON, "kv_append_min_batch": 128},
        [f"{SWITCH}=1: kv_append=triton, kv_append_min_batch=128"],
    ),
    (
        {SWITCH: "1", LEAST: "4"},
        (),
        {**TRITON, "kv_append_min_batch": 4},
        [f"{SWITCH}=1, {LEAST}=4: kv_append=triton, kv_append_min_batch=4"],
    ),
    (
        {LEAST: "4"},
        (),
        {**TRITON, "kv_append_min_batch": 4},
        [f"{LEAST}=4: kv_append=triton, kv_append_min_batch=4"],
    ),
    (
        {SWITCH: "0", LEAST: "4"},
        (),
        {"kv_append": "torch_indexed"},
        [f"{SWITCH}=0: kv_append=torch_indexed", f"{LEAST}=4 has no effect with it"],
    ),
    (
        {SWITCH: "1"},
        (("kv_append", "fused"),),
        {"kv_append": "fused"},
        [f"{SWITCH}=1 has no effect beside --set kv_append"],
    ),
    (
        {SWITCH: "1"},
        (("kv_append_min_batch", "2"),),
        {**TRITON, "kv_append_min_batch": "2"},
        [f"{SWITCH}=1: kv_append=triton, with --set kv_append_min_batch"],
    ),
]


@pytest.mark.parametrize(("environment", "pairs", "values", "seen"), ENVIRONMENTS)
def test_variables(environment, pairs, values, seen):
    settings = Settings(pairs=pairs)
    assert apply_environment(settings, environment) == seen
    assert settings.values == values


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({SWITCH: "yes"}, f"the environment variable {SWITCH} must be 0 or 1, but is 'yes'"),
        ({LEAST: "-1"}, f"the environment variable {LEAST} must be a number of sequences, but is '-1'"),
        ({LEAST: ""}, f"the environment variable {LEAST} must be a number of sequences, but is ''"),
    ],
)
def test_variables_with_wrong_values(environment, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        apply_environment(Settings(), environment)


def test_variables_are_obeyed_and_reported(run, fails, monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    for command in ("scheduler", "streaming"):
        out = run(command, *MODEL, *SMALL)[1]
        assert " kv_append=torch_indexed " in out
        assert f"environment: {SWITCH}=0: kv_append=torch_indexed\n" in out
    monkeypatch.setenv(SWITCH, "1")
    if not torch.cuda.is_available():
        with monkeypatch.context() as without:
            without.delenv("TRITON_INTERPRET")
            assert fails("scheduler", *MODEL).endswith(f"(kv_append comes from {SWITCH}=1)")
    out = run("scheduler", *KERNELS, *SMALL)[1]
    assert "kv_append did torch_indexed, for batches under 128: in 3 of 3 decode steps\n" in out


# Prompts and their schedule ---------------------------------------------------------------------------------------


def parsed(command, *flags):
    """Options of a command line."""
    kind = {"scheduler": SchedulerOptions, "streaming": StreamingOptions}[command]
    with cli.commands[command].make_context(command, [*PLAIN, *flags]) as context:
        return kind(**context.params)


@pytest.mark.parametrize(
    ("flags", "prompts"),
    [
        ((), ["Hello", "Hello", "Hello", "Hello"]),
        (("--prompts", "a", "--prompts", "b"), ["a", "b", "a", "b"]),
        (("--prompt", "a", "--prompt-repeats", "1,3"), ["a", "a a a", "a", "a a a"]),
        (("--prompt", "a", "--unique-prompts"), ["0 a", "1 a", "2 a", "3 a"]),
    ],
)
def test_prompts(flags, prompts):
    assert make_prompts(parsed("streaming", "--num-requests", "4", *flags), 10, 0) == prompts


def test_unique_prompts_are_of_one_length():
    prompts = make_prompts(parsed("streaming", "--num-requests", "11", "--unique-prompts"), 10, 0)
    assert (prompts[0], prompts[10]) == ("00 Hello", "10 Hello")


def test_random_prompts_depend_on_the_seed_alone():
    options = parsed("streaming", "--num-requests", "9", "--prompt-tokens", "5", "--prompt-repeats", "1,2")
    one, again, other = (make_prompts(options, 7, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert [len(prompt) for prompt in one] == [5, 10] * 4 + [5]
    assert one[1][:5] == one[1][5:]
    assert {token for prompt in one for token in prompt} == set(range(7))


class Clock:
    """Time that passes when someone sleeps or works."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(
    ("relative", "wanted"),
    [
        # Due at 0, 10, 20, 30; each look comes with 15 seconds of work, so that the engine is busy until 15, 30, 45.
        (False, [[0.0], [10.0], [20.0, 30.0]]),
        # The second is due at 10 and taken up at 15; the third at 25, taken up at 30; the fourth at 40.
        (True, [[0.0], [10.0], [25.0], [40.0]]),
    ],
)
def test_schedules(monkeypatch, relative, wanted):
    clock = Clock()
    monkeypatch.setattr(streaming, "time", clock)
    prompts = [[1], [2], [3], [4]]
    arrivals = streaming.Arrivals(prompts, 10.0, relative=relative, tokenizer=ByteTokenizer(), pool=None)
    seen, tokens = [], []
    while arrivals.left:
        come = list(arrivals.come())
        seen.append([due - 100.0 for due, _ in come])
        tokens += [one for _, one in come]
        clock.now += 15.0
    assert [dues for dues in seen if dues] == wanted
    assert tokens == prompts


def test_who_finds_no_room_is_held_back():
    arrivals = streaming.Arrivals([[1], [2], [3]], 0.0, relative=False, tokenizer=ByteTokenizer(), pool=None)
    assert [tokens for _, tokens in islice(arrivals.come(), 1)] == [[1]]
    assert not list(arrivals.come(lambda: False))
    assert arrivals.left
    assert [tokens for _, tokens in arrivals.come()] == [[2], [3]]


def test_packing_and_holding_back_under_load(found):
    """All of a streaming run's percentiles, of requests that come faster than they are served."""
    flags = ("--prefill-admission-policy", "pack", "--prefill-admission-lookahead", "4")
    flags += ("--prefill-force-fifo-every", "2", "--prefill-max-tokens", "16", "--max-inflight-requests", "3")
    flags += ("--prompt-repeats", "1,4", "--num-requests", "8", "--do-sample", "--top-k", "5", "--top-p", "0.9")
    (result,) = found("streaming", *flags)
    names = ("admission", "max_inflight", "admission_force_fifo", "admission_lookahead")
    assert [result["config"][name] for name in names] == ["pack", 3, 2, 4]
    assert [result["requests"][name] for name in ("top_k", "top_p")] == [5, 0.9]
    assert len(result["runs"][0]["requests"]) == len(result["runs"][0]["submit_lags"]) == 8


def test_an_idle_engine_sleeps_until_the_next_is_due(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(streaming, "time", clock)
    arrivals = streaming.Arrivals(["a", "b"], 2.0, relative=False, tokenizer=ByteTokenizer(), pool=None)
    assert list(arrivals.come()) == [(100.0, [97])]
    arrivals.wait()
    assert clock.now == 102.0
    assert list(arrivals.come()) == [(102.0, [98])]
    assert not arrivals.left
    arrivals.wait()
    assert clock.now == 102.0


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_tokenise_in_their_own_threads(found, monkeypatch, workers):
    threads, encode = [], ByteTokenizer.encode

    def noted(self, text):
        threads.append(threading.current_thread() is threading.main_thread())
        return encode(self, text)

    monkeypatch.setattr(ByteTokenizer, "encode", noted)
    (result,) = found("streaming", "--prompts", "one", "--prompts", "three", "--tokenize-workers", workers)
    # Each prompt once for the report, then once in the run.
    assert threads == [True] * 3 + [workers == 0] * 3
    assert [one["num_tokens"] for one in result["runs"][0]["requests"]] == [4, 4, 4]


@pytest.mark.parametrize(
    ("interval", "wanted"),
    [
        (1, ["a", "b", "c", "d", "e", "f"]),
        # The first at once, then by three; the last are not kept waiting.
        (3, ["a", "bcd", "ef"]),
        (100, ["a", "bcdef"]),
    ],
)
def test_text_is_handed_over_by_intervals(interval, wanted):
    seq = SimpleNamespace(tokens=[0, 0], num_prompt=2, num_output=0, finish_reason=None)
    reader = streaming.Reader(seq, Detokenizer(ByteTokenizer()), interval)
    for i, token in enumerate(b"abcdef", 1):
        seq.tokens.append(token)
        seq.num_output = i
        seq.finish_reason = FinishReason.LENGTH if i == 6 else None
        reader.look()
    assert reader.texts == wanted


def test_streamed_text_is_what_generate_makes(monkeypatch):
    """Requests that come one after another, each read in its own way, and the same without a schedule."""
    readers = []

    class Recording(streaming.Reader):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            readers.append(self)

    monkeypatch.setattr(streaming, "Reader", Recording)
    llm = LLM("tiny-gpt2", load_format="dummy", device="cpu", dtype="float64")
    options = parsed("streaming", "--max-new-tokens", "8", "--stream-interval", "3", "--submit-interval-ms", "1")
    prompts = ["abc", "wxyz", "0"]
    ended, lags = streaming.BENCHMARK.serve(llm, prompts, options)()
    wanted = llm.generate(prompts, options.params)
    assert ["".join(reader.texts) for reader in readers] == [output.text for output in wanted]
    assert len(ended) == len(lags) == 3
    assert min(lags) >= 0
    # They came at least a millisecond apart.
    arrived = [one.timing.arrived - lag for one, lag in zip(ended, lags, strict=True)]
    assert [after - before for before, after in pairwise(arrived)] == pytest.approx([1e-3] * 2)


# Peers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny-gpt2", "tiny-llama"])
def test_peers_serve_the_same_requests(run, model):
    flags = (
        "--hf-model-id",
        model,
        *MODEL[2:],
        "--num-requests",
        "5",
        "--max-batch-size",
        "2",
        "--max-new-tokens",
        "4",
    )
    runs = ("--warmup-runs", "1", "--repeat-runs", "2", "--against", ",".join(PEERS))
    code, out, err = run("scheduler", *flags, *runs, "--prompts", "ab", "--prompts", "cdefg", "--json", "-")
    assert (code, err) == (0, ""), err
    (result,) = json.loads(out)["results"]
    assert [one["completion_tokens"] for one in result["runs"]] == [20, 20]
    assert [(peer["name"], peer["tokens"], len(peer["seconds"])) for peer in result["peers"]] == [
        ("hf-dynamic", [20, 20], 2),
        ("hf-static", [20, 20], 2),
    ]
    assert result["config"]["gpu_memory_utilization"] == 0.5


def test_engine_and_peers_take_turns(monkeypatch, run):
    order = []
    serve, peer = session.measure, peers.HFPeers.run

    def ours(*arguments):
        order.append("engine")
        return serve(*arguments)

    def theirs(self, name, prompts):
        order.append(name)
        return peer(self, name, prompts)

    monkeypatch.setattr(session, "measure", ours)
    monkeypatch.setattr(peers.HFPeers, "run", theirs)
    flags = ("--warmup-runs", "1", "--repeat-runs", "2", "--against", "hf-dynamic,hf-static")
    out = run("scheduler", *MODEL, *SMALL, *flags)[1]
    warm = ["engine", "hf-dynamic", "hf-static"]
    assert order == warm * 3
    assert re.search(rf"hf-dynamic   p50/mean: {NUMBER}/{NUMBER} tokens/s \(engine / hf-dynamic: {NUMBER}x\)", out)
    assert "hf-static: " in out
    assert "x; not compiled: that needs a GPU)" in out or torch.cuda.is_available()


@pytest.mark.parametrize("more", [(), ("--no-stop-on-eos",)])
def test_both_end_where_the_text_does(checkpoints, tmp_path, more):
    """A checkpoint with an end of text that is the third token which follows the first prompt."""
    tokens = [[1, 2, 3], [4, 5]]
    llm = LLM(checkpoints.path("llama"), device="cpu")
    outputs = [output.token_ids for output in llm.generate(tokens, parsed("scheduler", "--max-new-tokens", "8").params)]
    end = outputs[0][2]
    folder = tmp_path / "with-eos"
    folder.mkdir()
    for file in os.scandir(checkpoints.path("llama")):
        (folder / file.name).symlink_to(file.path)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 319], "do_sample": True}))

    wanted = sum(tokens.index(end) + 1 if end in tokens and not more else 8 for tokens in outputs)
    options = parsed("scheduler", "--max-new-tokens", "8", "--against", "hf-dynamic", *more)
    object.__setattr__(options, "hf_model_id", str(folder))
    llm = LLM(str(folder), device="cpu")
    ours = llm.generate(tokens, options.params)
    assert sum(len(output.token_ids) for output in ours) == wanted
    assert peers.HFPeers(options, llm).run("hf-dynamic", tokens)[0] == wanted


def test_peers_need_room_in_the_context(fails):
    flags = ("--prompt-tokens", "250", "--max-new-tokens", "10", "--against", "hf-dynamic", "--json", "-")
    assert fails("scheduler", *MODEL, "--warmup-runs", "1", *flags) == (
        "--against needs prompts and new tokens to fit the model's context of 256, but there are up to 250 and 10; "
        "lower --max-new-tokens"
    )


def test_what_transformers_does_not_compile_is_refused_on_a_gpu(monkeypatch):
    llm = LLM("tiny-gpt2", load_format="dummy", device="cpu")
    options = parsed("scheduler", "--against", "hf-static")
    object.__setattr__(options, "hf_model_id", "tiny-gpt2")
    them = peers.HFPeers(options, llm)
    assert them.warmed_up("hf-static") == results.PeerRuns("hf-static", compiled=False)
    monkeypatch.setattr(them, "_device", torch.device("cuda"))
    with pytest.raises(ConfigError, match="hf-static: this version of transformers did not compile"):
        them.warmed_up("hf-static")
    them._model._compiled_call = None
    assert them.warmed_up("hf-static").compiled
    assert not them.warmed_up("hf-dynamic").compiled


@pytest.mark.parametrize("longer", [False, True])
def test_compiled_peers_are_warmed_up(found, monkeypatch, longer):
    """By the rules that hold on a GPU, with a back end that does nothing; a shape that comes later is noticed."""
    compiling = transformers.CompileConfig(backend="eager", mode=None)
    compiling._compile_all_devices = True
    monkeypatch.setitem(peers._EXTRA, "hf-static", {"cache_implementation": "static", "compile_config": compiling})
    torch._dynamo.reset()
    serve, runs = peers.HFPeers.run, []

    def run(self, name, prompts):
        runs.append(name)
        return serve(self, name, prompts[:2] if longer and len(runs) == 1 else prompts)

    monkeypatch.setattr(peers.HFPeers, "run", run)
    (result,) = found("scheduler", "--warmup-runs", "1", "--repeat-runs", "2", "--against", "hf-static")
    assert result["peers"][0]["compiled"]
    assert (result["recompiled"] > 0) is longer


# kv-append --------------------------------------------------------------------------------------------------------


def test_lines_are_the_seeds():
    assert kv_append.line(512, {"torch_indexed": 20.08, "triton": 18.74}) == (
        "B=512: baseline 20.08us, triton 18.74us, speedup 1.072x"
    )
    assert kv_append.line(8, {"triton": 10.0, "slot_mapping": 5.0, "torch_indexed": 20.0}) == (
        "B=8: baseline 10.00us, slot_mapping 5.00us, speedup 2.000x, torch_indexed 20.00us, speedup 0.500x"
    )


@pytest.mark.parametrize("build_index", [False, True])
def test_forms_write_the_same(build_index):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = kv_append.Sizes(heads=3, head_dim=8, block_size=16, dtype="float32")
    written = {}
    for form in FORMS:
        calls, caches = kv_append.make_calls((form,), 5, sizes, device, build_index=build_index)
        calls[form]()
        written[form] = torch.stack(caches).cpu()
    one_offset = written.pop("triton_full_batch")
    wanted = written["torch_indexed"]
    assert all(torch.equal(found, wanted) for found in written.values())
    # As many values in as many blocks, all at one offset.
    assert [found.any((-1, -2)).sum() for found in (wanted, one_offset)] == [10, 10]
    assert one_offset.any((-1, -2)).any(1).sum(1).tolist() == [1, 1]


def test_times_are_printed_and_written(run, monkeypatch, tmp_path):
    """Everything but a GPU: timing is replaced by numbers."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    calls = {"torch_indexed": lambda: 20.0, "triton": lambda: 10.0}
    monkeypatch.setattr(kv_append, "make_calls", lambda forms, *_, **__: ({form: calls[form] for form in forms}, None))
    timing = SimpleNamespace(
        eager_time=lambda call: call(), graph_time=lambda calls: SimpleNamespace(us=calls[0]() / 2)
    )
    monkeypatch.setitem(sys.modules, "kernels.bench.append", timing)
    monkeypatch.setitem(sys.modules, "kernels.bench.timing", timing)
    made = "index tensors made beforehand"
    out = run("kv-append", "--batch-sizes", "128,256", "--json", tmp_path / "a.json")[1]
    assert out.splitlines()[0] == "a GPU"
    assert out.splitlines()[2:] == [
        f"one layer of 12 heads of 64, blocks of 64, bfloat16; eager, {made}; baseline: torch_indexed",
        "B=128: baseline 20.00us, triton 10.00us, speedup 2.000x",
        "B=256: baseline 20.00us, triton 10.00us, speedup 2.000x",
    ]
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["schema"] == "engine.bench.kv-append/1"
    assert found["results"][1] == {"batch_size": 256, "us": {"torch_indexed": 20.0, "triton": 10.0}}
    assert found["heads"] == 12
    flags = (
        "--heads",
        "3",
        "--head-dim",
        "8",
        "--block-size",
        "16",
        "--dtype",
        "float16",
        "--forms",
        "triton,torch_indexed",
    )
    out = run("kv-append", "--batch-sizes", "1", "--graph", *flags)[1]
    assert out.splitlines()[2:] == [
        f"one layer of 3 heads of 8, blocks of 16, float16; in a CUDA graph, {made}; baseline: triton",
        "B=1: baseline 5.00us, torch_indexed 10.00us, speedup 0.500x",
    ]
    assert "eager, index tensors made in each call" in run("kv-append", "--build-index")[1]
    assert json.loads(run("kv-append", "--json", "-")[1])["timed"] == "eager, index tensors made beforehand"


# How runs end -----------------------------------------------------------------------------------------------------


def test_an_interrupt_is_one_line(tmp_path):
    """A real one, in a process of its own, while the benchmark waits for the next request to be due."""
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "engine.bench", "streaming", *MODEL, "--submit-interval-ms", "60000"]
    with subprocess.Popen(
        [*command, "--json", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout.readline().startswith("tiny-gpt2 (random weights)")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert one_sentence(err.removeprefix("\n"), "engine.bench") == "interrupted"
    assert not file.exists()


def test_a_reader_that_goes_away_is_no_failure(monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr("sys.stdout", pipe)
        assert main(["scheduler", *MODEL, *SMALL]) == 0
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_progress_is_for_a_terminal(run, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    flags = ("--warmup-runs", "1", "--repeat-runs", "2", "--against", "hf-dynamic")
    _, out, err = run("scheduler", *MODEL, *SMALL, *flags)
    said = [line.removesuffix(" ...") for line in err.split("\r\x1b[K") if line]
    assert said == [
        "loading tiny-gpt2",
        "making random weights on cpu",
        "online: warm-up run 1 of 1",
        "loading Hugging Face's model",
        "hf-dynamic: warm-up run 1 of 1",
        "online: run 1 of 2",
        "hf-dynamic: run 1 of 2",
        "online: run 2 of 2",
        "hf-dynamic: run 2 of 2",
    ]
    assert "\x1b" not in out


def test_every_command_has_help(run):
    for name in cli.commands:
        code, out, _ = run(name, "--help")
        assert code == 0
        assert out.startswith(f"Usage: python -m engine.bench {name}")


def test_traces_are_numbered(tmp_path):
    assert trace._new_path(tmp_path, "a").name == "a.json.gz"
    for name in ("a.json.gz", "a-2.json.gz"):
        (tmp_path / name).write_text("")
    assert trace._new_path(tmp_path, "a").name == "a-3.json.gz"
