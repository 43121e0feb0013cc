"""The benchmarks' command line."""

from collections.abc import Sequence as Many
from typing import TYPE_CHECKING, Any

import click

from engine.bench.options import (
    SchedulerOptions,
    StreamingOptions,
    json_option,
    names,
    numbers,
    prepare,
    scheduler_options,
    streaming_options,
)
from engine.command import CONTEXT, Settings, flag_of, hush_downloads, model_options, run

if TYPE_CHECKING:
    from engine.bench.results import Result

FORMS = ("torch_indexed", "triton", "triton_identity_pos", "triton_full_batch", "slot_mapping")


@click.group(context_settings=CONTEXT)
def cli() -> None:
    """Measure the engine; `python -m engine` runs it."""


@cli.command()
@scheduler_options
def scheduler(**flags: Any) -> None:
    """Submit all requests at once, and time them to the last token.

    Times and throughputs are p50 and mean over measured runs; TTFT, TPOT and latency are over the requests of all
    measured runs. The environment variables ROSELLM_TRITON_KV_APPEND (0: kv_append=torch_indexed, 1: kv_append=triton)
    and ROSELLM_TRITON_KV_APPEND_MIN_BATCH (128 unless set: the least batch for which it is used) are obeyed where
    --set kv_append does not say otherwise.
    """
    options = SchedulerOptions(**flags)
    settings, environment = prepare(options)
    hush_downloads()
    from engine.bench import scheduler as benchmark  # noqa: PLC0415 - needs torch
    from engine.bench.session import run as run_benchmark  # noqa: PLC0415 - needs torch

    run_benchmark(benchmark.BENCHMARK, options, settings, environment)


@cli.command()
@streaming_options
def streaming(**flags: Any) -> None:
    """Submit requests by a schedule, and hand out their text as it comes.

    Percentiles are over the requests of all measured runs; each run's throughput is printed as it ends. The environment
    variables that `scheduler` obeys are obeyed here too.
    """
    options = StreamingOptions(**flags)
    settings, environment = prepare(options)
    hush_downloads()
    from engine.bench import streaming as benchmark  # noqa: PLC0415 - needs torch
    from engine.bench.session import run as run_benchmark  # noqa: PLC0415 - needs torch

    run_benchmark(benchmark.BENCHMARK, options, settings, environment)


@cli.command()
@click.option("--hf-model-id", "model", default="gpt2", show_default=True, metavar="NAME", help="A preset, or a model.")
@model_options
@click.option("--batch-sizes", callback=numbers, default="8,64,256", show_default=True, metavar="NUMBERS")
@click.option("--context", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens of each prompt.")
@json_option
def step(
    pairs: list[tuple[str, str]], load_format: str | None, device: str | None, seed: int | None, **flags: Any
) -> None:
    """Time a decode step on a GPU, beside what it could not be faster than."""
    settings = Settings(pairs=pairs)
    for name, value in (("load_format", load_format), ("device", device), ("seed", seed)):
        settings.put(name, value, flag_of(name))
    settings.config()
    from engine.bench.step import StepOptions  # noqa: PLC0415 - needs torch
    from engine.bench.step import run as run_benchmark  # noqa: PLC0415 - needs torch

    run_benchmark(StepOptions(**flags), settings.values)


@cli.command()
@click.option("--rows", callback=numbers, default="1,2,3,4,5,6", show_default=True, metavar="NUMBERS")
@click.option("--against", default="hf-static", show_default=True, metavar="NAMES", help="Peers; none with ''.")
@click.option("--repeat-runs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--set", "pairs", multiple=True, metavar="NAME=VALUE", help="Set an option of the engine for all rows.")
def speed(rows: tuple[int, ...], against: str, repeat_runs: int, pairs: tuple[str, ...]) -> None:
    """Run the rows of the table of speeds on a GPU, each beside Hugging Face in the same process, and print it."""
    from engine.bench import scheduler as benchmark  # noqa: PLC0415 - needs torch
    from engine.bench import speed as table  # noqa: PLC0415 - needs torch
    from engine.bench.session import run as run_benchmark  # noqa: PLC0415 - needs torch

    if max(rows) > len(table.ROWS):
        raise click.UsageError(f"there are {len(table.ROWS)} rows")

    def run_scheduler(words: list[str]) -> "list[Result]":
        more = [word for pair in pairs for word in ("--set", pair)]
        options = SchedulerOptions(**scheduler.make_context("scheduler", words + more).params)
        return run_benchmark(benchmark.BENCHMARK, options, *prepare(options))

    hush_downloads()
    table.run(run_scheduler, rows, against, repeat_runs)


@cli.command("kv-append")
@click.option("--batch-sizes", callback=numbers, default="128,256,512,1024,2048", show_default=True, metavar="NUMBERS")
@click.option(
    "--forms",
    callback=names("form", FORMS),
    default="torch_indexed,triton",
    show_default=True,
    metavar="NAMES",
    help=f"The baseline, then what is compared with it: {', '.join(FORMS)}.",
)
@click.option("--heads", type=click.IntRange(min=1), default=12, show_default=True)
@click.option("--head-dim", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--block-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--dtype", type=click.Choice(("float32", "float16", "bfloat16")), default="bfloat16", show_default=True)
@click.option(
    "--build-index", is_flag=True, help="Make index tensors from lists in each call, as the seeds' engine does."
)
@click.option("--graph", is_flag=True, help="Replay calls from a CUDA graph: the kernels without their launching.")
@json_option
def kv_append(heads: int, head_dim: int, block_size: int, dtype: str, **flags: Any) -> None:
    """Time one layer's KV append on a GPU, each form beside a baseline."""
    from engine.bench.kv_append import KVAppendOptions, Sizes  # noqa: PLC0415 - needs torch
    from engine.bench.kv_append import run as run_benchmark  # noqa: PLC0415 - needs torch

    run_benchmark(KVAppendOptions(sizes=Sizes(heads, head_dim, block_size, dtype), **flags))


def main(arguments: Many[str] | None = None) -> int:
    """Run the command line; see `engine.command.run`."""
    return run(cli, "engine.bench", arguments)
