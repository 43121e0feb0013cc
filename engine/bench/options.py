"""The benchmarks' options: the seeds' flags, and ours."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from engine.command import Command, Settings, check_seed, check_target, model_options
from engine.errors import ConfigError, unknown
from engine.sampling_params import SamplingParams

MODES = ("naive", "offline", "online")
PEERS = ("hf-dynamic", "hf-static")
# Of the GPU's memory, where peers need some too.
SHARE_BESIDE_PEERS = 0.5

SWITCH = "ROSELLM_TRITON_KV_APPEND"
MIN_BATCH = "ROSELLM_TRITON_KV_APPEND_MIN_BATCH"
DEFAULT_MIN_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What both `scheduler` and `streaming` are asked for, by the names of their flags.

    Raises:
        ConfigError: Flags contradict each other, or one would change nothing.
    """

    hf_model_id: str | None
    checkpoint_path: str | None
    tokenizer_name: str | None
    load_format: str | None
    device: str | None
    bf16: bool
    prompt: str | None
    prompts: tuple[str, ...]
    prompt_tokens: int | None
    pretok: bool
    num_requests: int
    max_batch_size: int | None
    max_new_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    do_sample: bool
    no_stop_on_eos: bool
    mode: str | None
    no_prefix_cache: bool
    keep_prefix_cache_across_runs: bool
    profile: bool
    profile_dir: str | None
    warmup_runs: int
    repeat_runs: int
    print_per_run: bool
    paged_attn: bool | None
    cuda_graph: bool
    seed: int | None
    pairs: list[tuple[str, str]]
    json_target: str | None

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if (self.hf_model_id is None) == (self.checkpoint_path is None):
            raise ConfigError("give the model: one of --hf-model-id and --checkpoint-path")
        if self.checkpoint_path is not None and not Path(self.checkpoint_path).is_dir():
            raise ConfigError(f"--checkpoint-path {self.checkpoint_path} is not a folder; --hf-model-id takes names")
        given = [
            flag
            for flag, value in (
                ("--prompt", self.prompt),
                ("--prompts", self.prompts or None),
                ("--prompt-tokens", self.prompt_tokens),
            )
            if value is not None
        ]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} each say what the prompts are; keep one of them")
        if self.temperature is not None and not self.do_sample:
            raise ConfigError("--temperature is for --do-sample; without it the likeliest token is taken")
        if self.temperature == 0:
            raise ConfigError("--do-sample with --temperature 0 would not sample; leave both out, or raise it")
        for flag, value, off in (("--top-k", self.top_k, 0), ("--top-p", self.top_p, 1.0)):
            if value is not None and value != off and not self.do_sample:
                raise ConfigError(f"{flag} is for --do-sample; without it the likeliest token is taken")
        if self.keep_prefix_cache_across_runs and self.no_prefix_cache:
            raise ConfigError("--no-prefix-cache leaves nothing for --keep-prefix-cache-across-runs to keep")
        if self.profile_dir is not None and not self.profile:
            raise ConfigError("--profile-dir is for --profile; add it")
        check_target(self.json_target)

    @property
    def model(self) -> str:
        """A name, or the path of a folder."""
        model = self.checkpoint_path if self.hf_model_id is None else self.hf_model_id
        assert model is not None
        return model

    @property
    def modes(self) -> tuple[str | None, ...]:
        """Scheduling modes to be run one after another; None is what options say."""
        return MODES if self.mode == "all" else (self.mode,)

    @property
    def params(self) -> SamplingParams:
        """Of every request."""
        temperature = (1.0 if self.temperature is None else self.temperature) if self.do_sample else 0.0
        return SamplingParams(
            self.max_new_tokens,
            temperature,
            ignore_eos=self.no_stop_on_eos,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
        )

    def settings(self) -> Settings:
        """The engine's options, without the mode, and checked one by one.

        Raises:
            ConfigError: One does not exist, is set twice, is not built yet, or cannot have its value.
        """
        settings = Settings(pairs=self.pairs)
        if self.mode is not None and "mode" in settings:
            raise ConfigError("mode is set twice, by --mode and by --set; keep one of them")
        for name, value, source in self._engine_options():
            settings.put(name, value, source)
        if "dtype" not in settings:
            settings.put("dtype", "float32", "the lack of --bf16")
        config = settings.config()
        random = config.load_format == "dummy" or self.do_sample or self.prompt_tokens is not None
        check_seed(self.seed, matters=random)
        return settings

    def _engine_options(self) -> list[tuple[str, Any, str]]:
        attention = None if self.paged_attn is None else "triton" if self.paged_attn else "reference"
        return [
            ("load_format", self.load_format, "--load-format"),
            ("tokenizer", self.tokenizer_name, "--tokenizer-name"),
            ("device", self.device, "--device"),
            ("seed", self.seed, "--seed"),
            ("dtype", "bfloat16" if self.bf16 else None, "--bf16"),
            ("max_num_seqs", self.max_batch_size, "--max-batch-size"),
            ("prefix_cache", False if self.no_prefix_cache else None, "--no-prefix-cache"),
            ("attention_backend", attention, "--paged-attn" if self.paged_attn else "--no-paged-attn"),
            ("cuda_graph", "buckets" if self.cuda_graph else None, "--cuda-graph"),
        ]


@dataclass(frozen=True, kw_only=True)
class SchedulerOptions(RunOptions):
    """What `scheduler` is asked for besides."""

    against: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        super().__post_init__()
        if self.tokenizer_name is not None and self.prompt_tokens is not None:
            raise ConfigError("--prompt-tokens makes prompts of token ids, so --tokenizer-name would change nothing")
        if self.against and self.do_sample:
            raise ConfigError("--against compares greedy runs; leave out --do-sample")
        if "hf-static" in self.against and self.warmup_runs == 0:
            raise ConfigError("hf-static compiles in its first run; --against needs --warmup-runs 1 or more for it")

    def settings(self) -> Settings:
        """As `RunOptions.settings`; memory is left for peers."""
        settings = super().settings()
        if self.against and "num_blocks" not in settings and "gpu_memory_utilization" not in settings:
            settings.put("gpu_memory_utilization", SHARE_BESIDE_PEERS, "--against")
        return settings


@dataclass(frozen=True, kw_only=True)
class StreamingOptions(RunOptions):
    """What `streaming` is asked for besides."""

    prompt_repeats: tuple[int, ...]
    unique_prompts: bool
    tokenize_workers: int
    stream_interval: int
    submit_interval_ms: float
    submit_schedule: str
    prefill_max_batch_size: int | None
    prefill_max_tokens: int | None
    prefill_admission_policy: str | None
    prefill_admission_lookahead: int | None
    prefill_force_fifo_every: int | None
    max_active_requests: int | None
    max_inflight_requests: int | None
    decode_first: bool

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        super().__post_init__()
        for flag, value in (
            ("--prefill-admission-lookahead", self.prefill_admission_lookahead),
            ("--prefill-force-fifo-every", self.prefill_force_fifo_every),
        ):
            if value is not None and self.prefill_admission_policy != "pack":
                raise ConfigError(f"{flag} belongs to --prefill-admission-policy pack; add it")
        no_text = "--pretok" if self.pretok else "--prompt-tokens" if self.prompt_tokens is not None else None
        if self.tokenize_workers and no_text:
            raise ConfigError(f"{no_text} leaves nothing for --tokenize-workers to do; 0 is what fits it")
        if self.unique_prompts and self.prompt_tokens is not None:
            raise ConfigError("--prompt-tokens makes every prompt another, so --unique-prompts would change nothing")

    def _engine_options(self) -> list[tuple[str, Any, str]]:
        return [
            *super()._engine_options(),
            ("prefill_max_batch_size", self.prefill_max_batch_size, "--prefill-max-batch-size"),
            ("prefill_max_tokens", self.prefill_max_tokens, "--prefill-max-tokens"),
            ("admission", self.prefill_admission_policy, "--prefill-admission-policy"),
            ("admission_lookahead", self.prefill_admission_lookahead, "--prefill-admission-lookahead"),
            ("admission_force_fifo", self.prefill_force_fifo_every, "--prefill-force-fifo-every"),
            ("max_active", self.max_active_requests, "--max-active-requests"),
            ("max_inflight", self.max_inflight_requests, "--max-inflight-requests"),
            ("decode_first", True if self.decode_first else None, "--decode-first"),
        ]


def prepare(options: RunOptions) -> tuple[Settings, list[str]]:
    """The engine's options from flags and from the environment, and what came of each variable.

    Raises:
        ConfigError: One does not exist, is set twice, is not built yet, or cannot have its value.
    """
    settings = options.settings()
    environment = apply_environment(settings)
    settings.config()
    return settings, environment


def apply_environment(settings: Settings, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Seed 003's two variables, where `--set kv_append=...` has not said otherwise.

    Returns:
        What was seen and what came of it, a line for each variable.

    Raises:
        ConfigError: A variable has a wrong value.
    """
    switch, least = environment.get(SWITCH), environment.get(MIN_BATCH)
    if switch not in {None, "0", "1"}:
        raise ConfigError(f"the environment variable {SWITCH} must be 0 or 1, but is {switch!r}")
    if least is not None and not (least.isascii() and least.isdigit()):
        raise ConfigError(f"the environment variable {MIN_BATCH} must be a number of sequences, but is {least!r}")
    seen = [f"{name}={value}" for name, value in ((SWITCH, switch), (MIN_BATCH, least)) if value is not None]
    if "kv_append" in settings:
        return [f"{one} has no effect beside --set kv_append" for one in seen]
    if switch == "0":
        settings.put("kv_append", "torch_indexed", f"{SWITCH}=0")
        return [f"{seen[0]}: kv_append=torch_indexed", *(f"{one} has no effect with it" for one in seen[1:])]
    if not seen:
        return []
    settings.put("kv_append", "triton", seen[0])
    if "kv_append_min_batch" in settings:
        return [f"{', '.join(seen)}: kv_append=triton, with --set kv_append_min_batch"]
    batch = DEFAULT_MIN_BATCH if least is None else int(least)
    settings.put("kv_append_min_batch", batch, seen[-1])
    return [f"{', '.join(seen)}: kv_append=triton, kv_append_min_batch={batch}"]


# Flags ------------------------------------------------------------------------------------------------------------


def numbers(_context: click.Context, _option: click.Parameter, text: str) -> tuple[int, ...]:
    """A callback that reads `"1,4"` as `(1, 4)`."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers, as in 1,4") from None
    if min(found) < 1:
        raise click.BadParameter(f"{text!r} holds a number under 1")
    return found


def names(kind: str, known: tuple[str, ...]) -> Callable[[click.Context, click.Parameter, str | None], tuple[str, ...]]:
    """A callback that reads `"a,b"` as `("a", "b")`, each of them known; one that comes twice counts once."""

    def read(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...]:
        found = () if text is None else tuple(dict.fromkeys(part.strip() for part in text.split(",")))
        for one in found:
            if one not in known:
                raise click.BadParameter(unknown(kind, one, known))
        return found

    return read


def _decorator(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_COUNT = click.IntRange(min=1)

json_option = click.option(
    "--json",
    "json_target",
    type=click.Path(path_type=str, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write everything as JSON to FILE, or alone to standard output with -.",
)

run_options = _decorator(
    click.option("--hf-model-id", metavar="NAME", help="An id on the hub, or a preset with --load-format dummy."),
    click.option("--checkpoint-path", metavar="DIR", help="A checkpoint's folder, instead."),
    click.option("--tokenizer-name", metavar="NAME", help="Another tokenizer: a folder, an id on the hub, or byte."),
    model_options,
    click.option("--bf16", is_flag=True, help="bfloat16; otherwise float32, as the seeds ran."),
    click.option("--prompt", metavar="TEXT", help="What every request continues.  [default: Hello]"),
    click.option(
        "--prompts", metavar="TEXT", multiple=True, help="Repeated, several prompts that requests take in turn."
    ),
    click.option("--prompt-tokens", type=_COUNT, metavar="N", help="Prompts of N random token ids instead of text."),
    click.option(
        "--pretok",
        is_flag=True,
        help="Tokenise before the clock starts (of --prompt-tokens nothing is left to tokenise).",
    ),
    click.option("--num-requests", type=_COUNT, default=16, show_default=True),
    click.option(
        "--max-batch-size", type=_COUNT, metavar="N", help="Sequences that decode in a step.  [default: the engine's]"
    ),
    click.option("--max-new-tokens", type=_COUNT, default=64, show_default=True),
    click.option("--do-sample", is_flag=True, help="Draw tokens; otherwise the likeliest is taken."),
    click.option("--temperature", type=click.FloatRange(min=0), help="For --do-sample.  [default: 1.0]"),
    click.option("--top-k", type=click.IntRange(min=0), help="For --do-sample.  [default: 0, off]"),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="For --do-sample.  [default: 1.0, off]"),
    click.option("--no-stop-on-eos", is_flag=True, help="Go on after the model's end of text."),
    click.option(
        "--mode",
        type=click.Choice((*MODES, "all")),
        help="naive serves a request at a time, offline a batch, online admits whenever there is room; all runs one "
        "after another.  [default: online]",
    ),
    click.option("--no-prefix-cache", is_flag=True, help="Share no blocks between prompts that begin alike."),
    click.option("--keep-prefix-cache-across-runs", is_flag=True, help="Otherwise each run begins with an empty one."),
    click.option(
        "--paged-attn/--no-paged-attn",
        default=None,
        help="attention_backend triton, the paged kernels, or reference, torch over gathered blocks.  "
        "[default: the engine's]",
    ),
    click.option("--cuda-graph", is_flag=True, help="Not built yet."),
    click.option("--warmup-runs", type=click.IntRange(min=0), default=1, show_default=True, help="Not measured."),
    click.option("--repeat-runs", type=_COUNT, default=3, show_default=True, help="Measured runs."),
    click.option("--print-per-run", is_flag=True, help="Print each measured run too."),
    click.option("--profile", is_flag=True, help="Capture a trace of one more run, which is not measured."),
    click.option("--profile-dir", metavar="DIR", help="Where traces go; none is overwritten.  [default: profiles]"),
    json_option,
)

scheduler_options = _decorator(
    run_options,
    click.option(
        "--against",
        callback=names("peer", PEERS),
        metavar="NAMES",
        help=f"Run Hugging Face's generate as well, in turn with the engine: {', '.join(PEERS)}.",
    ),
)

streaming_options = _decorator(
    run_options,
    click.option(
        "--prompt-repeats",
        callback=numbers,
        default="1",
        metavar="NUMBERS",
        help="How often a request's prompt stands in a row, taken in turn: with 1,4 every other prompt is long.",
    ),
    click.option("--unique-prompts", is_flag=True, help="Begin each prompt with its request's number."),
    click.option(
        "--tokenize-workers",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Threads that tokenise what is due while the engine steps; 0 tokenises between steps.",
    ),
    click.option(
        "--stream-interval",
        type=_COUNT,
        default=1,
        show_default=True,
        help="Detokenise and hand over a request's first token, then every N.",
    ),
    click.option(
        "--submit-interval-ms",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        help="From one request to the next.",
    ),
    click.option(
        "--submit-schedule",
        type=click.Choice(("absolute", "relative")),
        default="absolute",
        show_default=True,
        help="Count intervals from the start of the run, or from when the request before was submitted.",
    ),
    click.option("--prefill-max-batch-size", type=_COUNT, metavar="N", help="Sequences that a step prefills."),
    click.option("--prefill-max-tokens", type=_COUNT, metavar="N", help="Tokens that a step prefills."),
    click.option(
        "--prefill-admission-policy",
        type=click.Choice(("fifo", "pack")),
        help="Admit in the order of arrival, or so that prompts fill a step.  [default: fifo]",
    ),
    click.option("--prefill-admission-lookahead", type=_COUNT, metavar="N", help="Requests among which pack chooses."),
    click.option(
        "--prefill-force-fifo-every",
        type=click.IntRange(min=0),
        metavar="N",
        help="Steps in which pack may pass over the oldest request.",
    ),
    click.option("--max-active-requests", type=_COUNT, metavar="N", help="Requests that hold cache blocks."),
    click.option(
        "--max-inflight-requests", type=_COUNT, metavar="N", help="Hold requests back while so many wait or run."
    ),
    click.option("--decode-first", is_flag=True, help="Decoding takes its tokens from a step first, not prefill."),
)
