"""The benchmarks' command line."""

from collections.abc import Sequence as Many
from typing import Any

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
from engine.command import CONTEXT, hush_downloads, run

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
