"""Results as text and as JSON; values in, text out."""

import dataclasses
import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable

from engine.bench.measure import Run, mean, percentile, tpots
from engine.bench.results import About, Result

SCHEMA = "engine.bench.{}/1"
_PERCENTS = (50, 95, 99)


def header(about: About) -> str:
    """What ran, in a few lines."""
    requests, config = about.requests, about.config
    least, most = requests["prompt_tokens"]
    lengths = f"{least}" if least == most else f"{least} to {most}"
    weights = " (random weights)" if config["load_format"] == "dummy" else ""
    clock = "before the clock starts" if requests["pretokenised"] else "on the clock"
    choice = f"temperature {requests['temperature']}" if requests["temperature"] else "greedy"
    end = "to the end of text" if requests["stop_on_eos"] else "past the end of text"
    cache = "on" if config["prefix_cache"] else "off"
    wanted = f"{requests['num_requests']} of {lengths} prompt tokens and {requests['max_new_tokens']} new ones"
    batch = f"{config['max_num_seqs']} sequences a batch at most"
    blocks = f"{config['num_blocks']} blocks of {config['block_size']}"
    return "\n".join(
        [
            f"{about.model}{weights}, {about.dtype}, on {about.device}",
            versions_line(about.versions),
            "variants: " + " ".join(f"{axis}={value}" for axis, value in about.variants.items()),
            f"requests: {wanted}, {choice}, {end}, tokenised {clock}",
            f"engine: {config['mode']}, {batch}, prefix cache {cache}, {blocks}",
            *(f"environment: {line}" for line in about.environment),
        ]
    )


def versions_line(versions: dict[str, str | None]) -> str:
    """Of what decides about speed."""
    return ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())


# scheduler --------------------------------------------------------------------------------------------------------


def scheduler_run(number: int, run: Run, wanted: bool) -> str:
    """A line for a run, where one is wanted."""
    if not wanted:
        return ""
    requests = run.requests
    return " | ".join(
        [
            f"run{number} Throughput: {run.throughput:.2f} tokens/s",
            f"Decode time: {run.counts.decode_seconds:.6f} s",
            f"Total time: {run.total_seconds:.6f} s",
            f"TTFT p50: {_ms(percentile([r.ttft for r in requests], 50))} ms",
            f"TPOT p50: {_ms(percentile(tpots(requests), 50))} ms/token",
            f"Latency p50: {_ms(percentile([r.latency for r in requests], 50))} ms",
        ]
    )


def scheduler_summary(result: Result) -> str:
    """The seeds' block, and what has to be said besides."""
    runs = result.runs
    requests = [request for run in runs for request in run.requests]
    return "\n".join(
        [
            f"=== {result.mode} summary ===",
            *_counts_of_runs(result),
            f"Decode time p50/mean: {_pair([run.counts.decode_seconds for run in runs], 6)} s",
            f"Total time p50/mean: {_pair([run.total_seconds for run in runs], 6)} s",
            f"Throughput(completion,decode) p50/mean: {_pair([r.decode_throughput for r in runs], 2)} tokens/s",
            f"Throughput(completion,total) p50/mean: {_pair([r.throughput for r in runs], 2)} tokens/s",
            f"TTFT p50/mean: {_pair([r.ttft * 1e3 for r in requests], 2)} ms",
            f"TPOT p50/mean: {_pair([tpot * 1e3 for tpot in tpots(requests)], 2)} ms/token",
            f"Latency p50/mean: {_pair([r.latency * 1e3 for r in requests], 2)} ms",
            *_besides(result),
            *_peers(result),
            *_trace(result),
        ]
    )


# streaming --------------------------------------------------------------------------------------------------------


def streaming_run(number: int, run: Run, in_full: bool) -> str:
    """A line for a run, with its percentiles under it where they are wanted."""
    tpot = _ms(percentile(tpots(run.requests), 50))
    lines = [f"run{number} Throughput: {run.throughput:.2f} tokens/s | TPOT p50: {tpot} ms/token"]
    return "\n".join(lines + [f"  {line}" for line in _percentiles([run])] if in_full else lines)


def streaming_summary(result: Result) -> str:
    """The average that seed 002 gives, and percentiles over the requests of all runs."""
    throughputs = [run.throughput for run in result.runs]
    return "\n".join(
        [
            f"avg  Throughput: {mean(throughputs):.2f} tokens/s",
            f"=== {result.mode} summary ===",
            *_counts_of_runs(result),
            *_percentiles(result.runs),
            f"Throughput(completion,total) p50/mean: {_pair(throughputs, 2)} tokens/s",
            *_besides(result),
            *_trace(result),
        ]
    )


def _samples(runs: Iterable[Run]) -> dict[str, list[float]]:
    """Every request's times in seconds, by name; of all runs together."""
    runs = list(runs)
    requests = [request for run in runs for request in run.requests]
    return {
        "Submit lag": [lag for run in runs for lag in run.submit_lags],
        "Queue wait": [r.queue_wait for r in requests],
        "Prefill to first token": [r.prefill for r in requests],
        "TTFT": [r.ttft for r in requests],
        "TPOT": tpots(requests),
        "ITL": [itl for r in requests for itl in r.itls],
        "Latency": [r.latency for r in requests],
    }


def _percentiles(runs: Iterable[Run]) -> list[str]:
    return [
        f"{name} p50/p95/p99: {'/'.join(_ms(percentile(samples, percent)) for percent in _PERCENTS)} "
        f"{'ms/token' if name == 'TPOT' else 'ms'}"
        for name, samples in _samples(runs).items()
    ]


# Parts ------------------------------------------------------------------------------------------------------------


def _counts_of_runs(result: Result) -> list[str]:
    return [f"Warmup runs: {result.warmup_runs}", f"Measured runs: {len(result.runs)}"]


def _besides(result: Result) -> list[str]:
    """The host's share, and what makes numbers mean something else than they seem to, where it happened."""
    counts = [run.counts for run in result.runs]
    lines = []
    decodes = sum(one.decodes for one in counts)
    if decodes:
        host = [one.host_seconds_a_step * 1e3 for one in counts if one.decodes]
        lines.append(f"Host time a decode step p50/mean: {_pair(host, 3)} ms, without waiting for tokens")
    for note, times in sum((Counter(one.notes) for one in counts), Counter[str]()).items():
        lines.append(f"kv_append did {note}: in {times} of {decodes} decode steps")
    preemptions = sum(one.preemptions for one in counts)
    if preemptions:
        lines.append(f"Preemptions: {preemptions}, for want of cache blocks; their tokens were computed again")
    hits, queried = (sum(values) for values in zip(*((c.hit_tokens, c.queried_tokens) for c in counts), strict=True))
    if hits:
        lines.append(f"Prefix cache hits: {hits} of {queried} tokens ({hits / queried:.1%})")
    cut = sum(run.cut_short for run in result.runs)
    if cut:
        total = sum(len(run.requests) for run in result.runs)
        lines.append(f"Cut short: {cut} of {total} requests came to the end of the context before --max-new-tokens")
    return lines


def _peers(result: Result) -> list[str]:
    """Everybody's tokens a second, and how many times faster the engine is."""
    if not result.peers:
        return []
    ours = percentile([run.throughput for run in result.runs], 50)
    lines = [
        "=== against Hugging Face's generate ===",
        "Tokens/s of the whole run, prefill included, without detokenising; runs took turns in one process.",
        f"{'engine':<12} p50/mean: {_pair([run.throughput for run in result.runs], 2)} tokens/s",
    ]
    for peer in result.peers:
        ratio = ours / percentile(peer.throughputs, 50)
        how = "" if peer.name != "hf-static" or peer.compiled else "; not compiled: that needs a GPU"
        pair = _pair(peer.throughputs, 2)
        lines.append(f"{peer.name:<12} p50/mean: {pair} tokens/s (engine / {peer.name}: {ratio:.2f}x{how})")
    if result.recompiled:
        lines.append(
            f"{result.recompiled} graphs were compiled during measured runs, so peers were slower than they can be; "
            "raise --warmup-runs"
        )
    return lines


def _trace(result: Result) -> list[str]:
    if result.trace is None:
        return []
    path = str(result.trace)
    return [f"trace of one more run: {path}", f"next: {shlex.join(['tracetool', 'summary', path])}"]


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _pair(values: list[float], digits: int) -> str:
    return f"{_number(percentile(values, 50), digits)}/{_number(mean(values), digits)}"


def _ms(seconds: float) -> str:
    return _number(seconds * 1e3, 2)


# JSON -------------------------------------------------------------------------------------------------------------


def to_json(results: list[Result]) -> str:
    """All that was asked for, ran and was measured; seconds throughout, null where there is nothing."""
    name = results[0].benchmark
    return json.dumps({"schema": SCHEMA.format(name), "results": [_result(one) for one in results]}, indent=1) + "\n"


def _result(result: Result) -> dict[str, object]:
    [run.counts for run in result.runs]
    return {
        "mode": result.mode,
        **dataclasses.asdict(result.about),
        "warmup_runs": result.warmup_runs,
        "summary": {
            "decode_seconds": _spread([run.counts.decode_seconds for run in result.runs]),
            "host_seconds_a_step": _spread(
                [run.counts.host_seconds_a_step for run in result.runs if run.counts.decodes]
            ),
            "total_seconds": _spread([run.total_seconds for run in result.runs]),
            "decode_throughput": _spread([run.decode_throughput for run in result.runs]),
            "throughput": _spread([run.throughput for run in result.runs]),
            **_spreads(result.runs),
        },
        "runs": [_run(run) for run in result.runs],
        "peers": [
            {
                "name": peer.name,
                "compiled": peer.compiled,
                "tokens": peer.tokens,
                "seconds": peer.seconds,
                "throughput": _spread(peer.throughputs),
            }
            for peer in result.peers
        ],
        "recompiled": result.recompiled,
        "trace": None if result.trace is None else str(result.trace),
    }


def _run(run: Run) -> dict[str, object]:
    return {
        "total_seconds": run.total_seconds,
        "completion_tokens": run.completion_tokens,
        "throughput": run.throughput,
        "decode_throughput": _finite(run.decode_throughput),
        "cut_short": run.cut_short,
        **dataclasses.asdict(run.counts),
        **_spreads([run]),
        "requests": [
            {key: value for key, value in dataclasses.asdict(one).items() if key != "itls"} for one in run.requests
        ],
        "submit_lags": list(run.submit_lags),
    }


def _spreads(runs: Iterable[Run]) -> dict[str, object]:
    return {name.lower().replace(" ", "_") + "_seconds": _spread(samples) for name, samples in _samples(runs).items()}


def _spread(samples: list[float]) -> dict[str, float | int | None]:
    known = [sample for sample in samples if not math.isnan(sample)]
    percentiles = {f"p{percent}": _finite(percentile(known, percent)) for percent in _PERCENTS}
    return {"count": len(known), "mean": _finite(mean(known)), **percentiles}


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
