"""What a comparison adds to its diff: unprofiled speed, equal results, failures, and where the traces are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracetool.metrics import Unit
from tracetool.render import json, words
from tracetool.stats import FEWEST_PROCESSES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.comparing import Comparison
    from tracetool.render.view import View
    from tracetool.stats import Ratio
    from tracetool.unprofiled import Times


def text(found: Comparison) -> str:
    """Lines for a terminal."""
    return "\n".join(_lines(found)) + "\n"


def markdown(found: Comparison) -> str:
    """The same as a list."""
    return "\n".join(f"- {line.strip()}" for line in _lines(found)) + "\n"


def to_json(found: Comparison, view: View) -> str:
    """All of it, by `tracetool.compare/1`; `diff` is `tracetool.diff/1`."""
    whole: dict[str, Any] = {
        "schema": "tracetool.compare/1",
        "unprofiled": [
            {
                "label": speed.label,
                "processes": len(speed.samples),
                "samples": sum(map(len, speed.samples)),
                "step_ns": speed.median_ns,
                "ratio": None
                if speed.ratio is None
                else {"value": speed.ratio.value, "low": speed.ratio.low, "high": speed.ratio.high},
            }
            for speed in found.speeds
        ],
        "same_results": found.results,
        "different_results": found.different,
        "failures": found.failures,
        "graphs_not_given_back": found.ungiven,
        "traces": {label: str(path) for label, path in found.traces.items()},
        "diff": None if found.diff is None else json.diff_values(found.diff, view),
    }
    return json.as_text(whole)


def _lines(found: Comparison) -> Iterator[str]:
    if found.speeds:
        first = found.speeds[0]
        processes, samples = len(first.samples), sum(map(len, first.samples))
        each = f"{processes} process{'es' if processes > 1 else ''}, {samples} samples in all"
        yield f"a step, unprofiled ({each}; the variants took turns)"
        width = max(len(speed.label) for speed in found.speeds)
        for speed in found.speeds:
            yield f"  {words.clean(speed.label):<{width}}  {_speed(speed, first)}".rstrip()
    if found.results is not None:
        yield (
            "results: the same" if found.results else f"results: not those of the baseline in {_names(found.different)}"
        )
    if found.diff is not None and not any(side.summary.holds("kernels") for side in found.diff.sides):
        yield "no GPU was at work: ops and times are compared; launches, copies and syncs are not in these traces"
    for label, failure in found.failures.items():
        yield f"failed: {words.clean(label)}: {words.clean(failure)}"
    for label, why in found.ungiven.items():
        yield f"{words.clean(label)}: work of CUDA graphs that stays with their launches: {words.clean(why)}"
    if found.traces:
        yield f"traces: {', '.join(words.clean(str(path)) for path in found.traces.values())}"


def _speed(speed: Times, baseline: Times) -> str:
    time = "-" if speed.median_ns is None else words.number(speed.median_ns, Unit.NS)
    if speed is baseline:
        return time
    if speed.ratio is None:
        return f"{time}  too few processes to say how it compares: --rounds {FEWEST_PROCESSES} or more"
    return f"{time}  {_ratio(speed.ratio)}"


def _ratio(ratio: Ratio) -> str:
    verdict = "faster" if ratio.faster else "slower" if ratio.slower else "no difference to be seen"
    return f"x{ratio.value:.3f}, 95 % interval {ratio.low:.3f} to {ratio.high:.3f}: {verdict}"


def _names(labels: list[str]) -> str:
    return ", ".join(words.clean(label) for label in labels)
