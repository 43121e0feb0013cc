"""The table of speeds: runs of `scheduler`, each beside Hugging Face in one process, and what was to be reached."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.bench.measure import percentile, tpots
from engine.bench.results import Result
from engine.command import emit

_ALWAYS = (
    "--load-format dummy --device cuda --bf16 --prompt-tokens 16 --no-stop-on-eos --no-prefix-cache --warmup-runs 1"
)


@dataclass(frozen=True)
class Row:
    """A run: flags of `scheduler`, and targets, each None where there is none.

    Attributes:
        throughput: Tokens a second.
        ratio: Times the throughput of Hugging Face's static cache, compiled.
        tpot: Milliseconds from token to token, at most.
    """

    name: str
    flags: str
    throughput: float | None = None
    ratio: float | None = None
    tpot: float | None = None

    def arguments(self, peers: str, repeats: int) -> list[str]:
        """Words of the command line."""
        against = f" --against {peers}" if peers else ""
        return f"{self.flags} {_ALWAYS} --repeat-runs {repeats}{against}".split()


def _flags(model: str, requests: int, new: int, batch: int) -> str:
    return f"--hf-model-id {model} --num-requests {requests} --max-new-tokens {new} --max-batch-size {batch}"


ROWS = (
    Row("GPT-2, 64 x 512, batch 64", _flags("gpt2", 64, 512, 64), throughput=100_000),
    Row("GPT-2, 64 x 128, batch 64", _flags("gpt2", 64, 128, 64), ratio=2.9),
    Row("GPT-2, 256 x 128, batch 256", _flags("gpt2", 256, 128, 256), throughput=320_000),
    Row("GPT-2, 16 x 256, batch 8", _flags("gpt2", 16, 256, 8), tpot=0.40),
    Row("Qwen3-0.6B's shape, 64 x 128, batch 64", _flags("qwen3-0.6b", 64, 128, 64), throughput=44_000, ratio=3.6),
    Row("Qwen3-0.6B's shape, 256 x 128, batch 256", _flags("qwen3-0.6b", 256, 128, 256), throughput=105_000),
)


def run(scheduler: Callable[[list[str]], list[Result]], numbers: tuple[int, ...], peers: str, repeats: int) -> None:
    """Run rows, and print the table.

    Args:
        scheduler: Runs `scheduler` with these words.
        numbers: Of the rows, from 1.
        peers: As `--against` has them; none when empty.
        repeats: Measured runs of each row.
    """
    found = [(ROWS[number - 1], scheduler(ROWS[number - 1].arguments(peers, repeats))[0]) for number in numbers]
    emit("\n" + _table(found))


def _table(found: list[tuple[Row, Result]]) -> str:
    lines = ["| run | tokens/s | TPOT ms | host ms a step | beside | reach |", "|---|---|---|---|---|---|"]
    for row, result in found:
        throughput = percentile([run.throughput for run in result.runs], 50)
        tpot = percentile(tpots(request for run in result.runs for request in run.requests), 50) * 1e3
        host = percentile([run.counts.host_seconds_a_step for run in result.runs], 50) * 1e3
        peers = [(peer.name, percentile(peer.throughputs, 50)) for peer in result.peers]
        beside = ", ".join(f"{name} {theirs:,.0f} ({throughput / theirs:.2f} x)" for name, theirs in peers)
        lines.append(f"| {row.name} | {throughput:,.0f} | {tpot:.3f} | {host:.3f} | {beside} | {_reach(row)} |")
    return "\n".join(lines) + "\n"


def _reach(row: Row) -> str:
    targets = ("{:,.0f} tokens/s", row.throughput), ("{} x hf-static", row.ratio), ("TPOT {:.2f} ms", row.tpot)
    return ", ".join(text.format(value) for text, value in targets if value is not None)
