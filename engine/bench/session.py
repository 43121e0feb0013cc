"""How a benchmark runs: load, warm up, measure, peers in turn, a trace, one mode after another."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import torch

from engine.bench import report, trace
from engine.bench.measure import Ended, Run, measure
from engine.bench.options import RunOptions, SchedulerOptions
from engine.bench.peers import HFPeers, graphs_compiled
from engine.bench.results import About, PeerRuns, Result
from engine.bench.workload import Prompts, make_prompts
from engine.command import Settings, emit, has_listener, write
from engine.llm import LLM

if TYPE_CHECKING:
    from types import TracebackType

Options = TypeVar("Options", bound=RunOptions)

# Serves all requests of a run; gives them, and their submit lags where there is a schedule.
Serve = Callable[[], tuple[list[Ended], list[float]]]
DEFAULT_PROFILE_DIR = "profiles"


class Benchmark(NamedTuple, Generic[Options]):
    """What makes a benchmark.

    Attributes:
        name: Of the command.
        serve: From a loaded model, prompts and options to what serves them.
        run_text: What is printed of a measured run, by its number; often nothing.
        summary: What is printed of all.
    """

    name: str
    serve: Callable[[LLM, Prompts, Options], Serve]
    run_text: Callable[[int, Run, bool], str]
    summary: Callable[[Result], str]


class Progress:
    """One line on standard error, for a person at a terminal; nothing refreshes it while a run is measured."""

    def __init__(self) -> None:
        self._shown = has_listener()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: "TracebackType | None"
    ) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """Say what is being done."""
        if self._shown:
            sys.stderr.write(f"\r\x1b[K{text} ...")
            sys.stderr.flush()

    def clear(self) -> None:
        """Make room for other output."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def run(benchmark: Benchmark[Options], options: Options, settings: Settings, environment: list[str]) -> list[Result]:
    """Run a benchmark in each mode that is asked for, and print or write what it finds.

    Args:
        benchmark: Which.
        options: What it is asked for.
        settings: The engine's options.
        environment: Variables that had a say in them, for the report.

    Raises:
        EngineError: Something cannot be done as it is asked for.
    """
    if options.profile:
        trace.make_folder(Path(options.profile_dir or DEFAULT_PROFILE_DIR))
    results: list[Result] = []
    with Progress() as progress:
        session = _Session(benchmark, options, settings, environment, progress)
        for mode in options.modes:
            if results:
                session.say("")
            results.append(session.run_mode(mode))
    if options.json_target is not None:
        write(report.to_json(results), options.json_target)
    return results


class _Session(Generic[Options]):
    """What modes have in common."""

    def __init__(
        self,
        benchmark: Benchmark[Options],
        options: Options,
        settings: Settings,
        environment: list[str],
        progress: Progress,
    ) -> None:
        self._benchmark = benchmark
        self._options = options
        self._settings = settings
        self._environment = environment
        self._progress = progress
        self._peers: HFPeers | None = None

    def say(self, text: str) -> None:
        """Print, unless standard output is for JSON."""
        if self._options.json_target != "-":
            self._progress.clear()
            emit(text + "\n")

    def run_mode(self, mode: str | None) -> Result:
        """Load, run and report; the engine is garbage when this returns, and the next one that is loaded frees it."""
        options, progress = self._options, self._progress
        llm = self._load(mode)
        prompts = make_prompts(options, llm.core.runner.spec.vocab_size, llm.config.seed)
        token_ids = [llm.tokenizer.encode(one) if isinstance(one, str) else one for one in prompts]
        about = About.of(options, llm, self._requests(token_ids), self._environment)
        self.say(report.header(about))
        if options.pretok:
            prompts = token_ids
        serve = self._benchmark.serve(llm, prompts, options)

        def once() -> Run:
            if not options.keep_prefix_cache_across_runs:
                llm.reset_prefix_cache()
            _settle(llm)
            return measure(llm.core, options.max_new_tokens, serve)

        for number in range(options.warmup_runs):
            progress.show(f"{llm.config.mode}: warm-up run {number + 1} of {options.warmup_runs}")
            once()
        peers = self._warm_up_peers(llm, prompts)
        watched = any(peer.compiled for peer in peers)
        compiled_before = graphs_compiled() if watched else 0
        runs: list[Run] = []
        for number in range(1, options.repeat_runs + 1):
            progress.show(f"{llm.config.mode}: run {number} of {options.repeat_runs}")
            runs.append(once())
            text = self._benchmark.run_text(number, runs[-1], options.print_per_run)
            if text:
                self.say(text)
            for peer in peers:
                progress.show(f"{peer.name}: run {number} of {options.repeat_runs}")
                self._run_peer(peer, prompts)
        recompiled = graphs_compiled() - compiled_before if watched else 0
        path = None
        if options.profile:
            progress.show(f"{llm.config.mode}: one run under the profiler")
            folder = Path(options.profile_dir or DEFAULT_PROFILE_DIR)
            device = llm.core.runner.cache.keys.device
            path = trace.capture(once, device, folder, f"{self._benchmark.name}-{llm.config.mode}")
        result = Result(self._benchmark.name, about, options.warmup_runs, tuple(runs), tuple(peers), recompiled, path)
        self.say(self._benchmark.summary(result))
        return result

    def _load(self, mode: str | None) -> LLM:
        self._progress.show(f"loading {self._options.model}")
        settings = self._settings.values | ({} if mode is None else {"mode": mode})
        with self._settings.explained():
            return LLM(self._options.model, progress=self._progress.show, **settings)

    def _requests(self, token_ids: list[list[int]]) -> dict[str, object]:
        options, lengths = self._options, [len(prompt) for prompt in token_ids]
        return {
            "num_requests": options.num_requests,
            "prompt_tokens": [min(lengths), max(lengths)],
            "max_new_tokens": options.max_new_tokens,
            "temperature": options.params.temperature,
            "top_k": options.params.top_k,
            "top_p": options.params.top_p,
            "stop_on_eos": not options.no_stop_on_eos,
            "pretokenised": options.pretok or options.prompt_tokens is not None,
        }

    def _warm_up_peers(self, llm: LLM, prompts: Prompts) -> list[PeerRuns]:
        options = self._options
        if not isinstance(options, SchedulerOptions) or not options.against:
            return []
        if self._peers is None:
            self._progress.show("loading Hugging Face's model")
            self._peers = HFPeers(options, llm)
        peers = []
        for name in options.against:
            for number in range(options.warmup_runs):
                self._progress.show(f"{name}: warm-up run {number + 1} of {options.warmup_runs}")
                self._peers.run(name, prompts)
            peers.append(self._peers.warmed_up(name))
        return peers

    def _run_peer(self, peer: PeerRuns, prompts: Prompts) -> None:
        assert self._peers is not None
        gc.collect()
        tokens, seconds = self._peers.run(peer.name, prompts)
        peer.tokens.append(tokens)
        peer.seconds.append(seconds)


def _settle(llm: LLM) -> None:
    """Begin with nothing left to do: no garbage, no work under way."""
    gc.collect()
    device = llm.core.runner.cache.keys.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
