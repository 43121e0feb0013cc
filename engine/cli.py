"""The engine at a terminal: text from prompts, and what there is to choose from."""

import json
import shutil
import sys
import time
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from engine.command import (
    CONTEXT,
    Settings,
    check_seed,
    emit,
    engine_option,
    flag_of,
    hush_downloads,
    model_options,
    run,
    say,
)
from engine.config import EngineConfig
from engine.errors import ConfigError, RequestError
from engine.sampling_params import SamplingParams
from engine.timing import RequestTimes

if TYPE_CHECKING:
    from engine.llm import LLM, Increment, Output

# A terminal must not take a model's bytes for commands.
_NOT_SHOWN = {c: "\N{REPLACEMENT CHARACTER}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}
_PROMPT_IN_HEADER = 50


@click.group(context_settings=CONTEXT)
def cli() -> None:
    """A paged-attention inference engine; `python -m engine.bench` measures it."""


@cli.command()
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option(
    "--model",
    required=True,
    metavar="MODEL",
    help="A checkpoint's folder, an id on the hub, or a preset with --load-format dummy.",
)
@click.option("--stream", is_flag=True, help="Print text as it comes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a request.")
@click.option("--quiet", is_flag=True, help="Say nothing on standard error but errors.")
@click.option("--max-tokens", type=int, default=128, show_default=True, help="Tokens to generate at most.")
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token, others draw one."
)
@click.option("--top-k", type=int, default=0, help="Draw from so many of the likeliest tokens; 0 is all.")
@click.option("--top-p", type=float, default=1.0, help="Draw from the likeliest tokens with this probability together.")
@click.option("--min-p", type=float, default=0.0, help="Draw from tokens with this share of the likeliest one's.")
@click.option("--repetition-penalty", type=float, default=1.0, help="Make tokens that occur less likely; 1 is off.")
@click.option("--stop", "stops", metavar="TEXT", multiple=True, help="End at this text. May be repeated.")
@click.option("--stop-token-id", "stop_token_ids", type=int, multiple=True, help="End at this token. May be repeated.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the model's end of text.")
@engine_option("--dtype", "dtype")
@engine_option("--tokenizer", "tokenizer")
@model_options
def generate(
    prompts: tuple[str, ...],
    model: str,
    stream: bool,
    as_json: bool,
    quiet: bool,
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    stops: tuple[str, ...],
    stop_token_ids: tuple[int, ...],
    ignore_eos: bool,
    pairs: list[tuple[str, str]],
    **flags: Any,
) -> None:
    """Continue each PROMPT.

    One prompt is read from standard input where PROMPT is -, or where there is none and a pipe leads here; a newline
    at its end is not part of it. Standard output gets the text alone.
    """
    if stream and as_json:
        raise ConfigError("--json prints a request when it has ended, --stream as it comes; leave one of them out")
    settings = Settings(pairs=pairs)
    for name, value in flags.items():
        settings.put(name, value, flag_of(name))
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        stop_token_ids=stop_token_ids,
        ignore_eos=ignore_eos,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=stops,
    )
    check_seed(flags["seed"], matters=temperature > 0 or settings.config().load_format == "dummy")
    texts = _read_prompts(prompts)
    llm = _load(model, settings, quiet=quiet)
    start = time.perf_counter()
    if as_json:
        outputs = llm.generate(texts, params)
        for prompt, output in zip(texts, outputs, strict=True):
            emit(json.dumps(_as_json(prompt, output)) + "\n")
        ended = [(len(output.token_ids), str(output.finish_reason)) for output in outputs]
    else:
        ended = _print(llm.stream(texts, params), texts, live=stream)
    seconds = time.perf_counter() - start
    tokens = sum(count for count, _ in ended)
    reasons = ", ".join(dict.fromkeys(reason for _, reason in ended))
    say(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} tokens/s, finished by {reasons}", quiet=quiet)


@cli.command()
def variants() -> None:
    """List every axis with its values: what each does, and which are the defaults."""
    from engine.variants.choice import AXES  # noqa: PLC0415 - needs torch

    with _Page() as page:
        for name, axis in AXES.items():
            rows = [(value, about + _default(value, axis.cpu, axis.cuda)) for value, about in axis.values.items()]
            page.table(f"{name}: {axis.about}", rows)


@cli.command()
def options() -> None:
    """List every option of the engine with its default; --set NAME=VALUE sets it."""
    from engine.variants.choice import AXES  # noqa: PLC0415 - needs torch

    with _Page() as page:
        rows = []
        for option in fields(EngineConfig):
            about, choices = option.metadata["about"], option.metadata["choices"]
            if option.name in AXES:
                about += ": " + ", ".join(AXES[option.name].values)
            elif choices:
                about += f" ({', '.join(choices)})"
            rows.append((f"{option.name}={_as_text(option.default)}", about))
        page.table("option=default", rows)


@cli.command()
def presets() -> None:
    """List the models that --load-format dummy knows by name."""
    from engine.loading import find_model  # noqa: PLC0415 - needs torch
    from engine.models.presets import PRESETS  # noqa: PLC0415 - with the above

    with _Page() as page:
        rows = []
        for name in PRESETS:
            spec = find_model(name, "dummy").spec
            heads = f"{spec.num_heads} heads ({spec.num_kv_heads} of keys and values) of {spec.head_dim}"
            sizes = f"{spec.num_layers} layers of {spec.hidden_size}, {heads}, {spec.vocab_size} tokens"
            rows.append((name, f"{spec.model_type}: {sizes}, context {spec.max_positions}"))
        page.table("preset", rows)


def main(arguments: Many[str] | None = None) -> int:
    """Run the command line; see `engine.command.run`."""
    return run(cli, "engine", arguments)


# Steps of the commands --------------------------------------------------------------------------------------------


def _read_prompts(prompts: tuple[str, ...]) -> list[str]:
    """The prompts, with standard input in the place of `-`."""
    if prompts.count("-") > 1:
        raise RequestError("standard input can be read only once; give - once")
    if not prompts:
        if sys.stdin is None or sys.stdin.isatty():
            raise RequestError("there is no prompt; give one, or - to read one from standard input")
        prompts = ("-",)
    return [_read_stdin() if prompt == "-" else prompt for prompt in prompts]


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8 ({error.reason} at byte {error.start})") from None


def _load(model: str, settings: Settings, *, quiet: bool) -> "LLM":
    say(f"loading {model}", quiet=quiet)
    hush_downloads(quiet=quiet)
    from engine.llm import LLM  # noqa: PLC0415 - needs torch

    with settings.explained():
        return LLM(model, progress=lambda text: say(text, quiet=quiet), **settings.values)


def _print(increments: Iterable["Increment"], prompts: list[str], *, live: bool) -> list[tuple[int, str]]:
    """Print texts in the order of their prompts, each under a header where there are several.

    Args:
        increments: What steps add; requests are served side by side.
        prompts: For headers.
        live: Whether a text is printed as it comes, or when it has ended; either way it waits for those before it.

    Returns:
        Tokens and finish reason of each request.
    """
    pending, counts = [""] * len(prompts), [0] * len(prompts)
    reasons: list[str | None] = [None] * len(prompts)
    printer = _Printer(prompts)
    for one in increments:
        pending[one.index] += one.text
        counts[one.index] += len(one.token_ids)
        reasons[one.index] = one.finish_reason
        while printer.turn < len(prompts) and (live or reasons[printer.turn]):
            turn = printer.turn
            printer.text(pending[turn])
            pending[turn] = ""
            if not reasons[turn]:
                break
            printer.end()
    return [(count, str(reason)) for count, reason in zip(counts, reasons, strict=True)]


class _Printer:
    """Prints one text after another."""

    def __init__(self, prompts: list[str]) -> None:
        self.turn = 0
        self._prompts = prompts
        self._terminal = sys.stdout is not None and sys.stdout.isatty()
        self._begun = False
        self._last = ""

    def text(self, text: str) -> None:
        """More of the text whose turn it is."""
        if not self._begun and len(self._prompts) > 1:
            prompt = " ".join(self._prompts[self.turn].split()).translate(_NOT_SHOWN)
            shown = prompt if len(prompt) <= _PROMPT_IN_HEADER else prompt[: _PROMPT_IN_HEADER - 3] + "..."
            emit(f"=== {self.turn + 1} of {len(self._prompts)}: {shown} ===\n")
        self._begun = True
        if text:
            emit(text.translate(_NOT_SHOWN) if self._terminal else text)
            self._last = text[-1]

    def end(self) -> None:
        """The text is complete."""
        if self._last != "\n":
            emit("\n")
        self.turn += 1
        self._begun = False
        self._last = ""


def _as_json(prompt: str, output: "Output") -> dict[str, object]:
    times = RequestTimes.of(output.timing)
    return {
        "prompt": prompt,
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": str(output.finish_reason),
        **({} if output.error is None else {"error": output.error}),
        "prompt_tokens": len(output.prompt_token_ids),
        "cached_prompt_tokens": output.num_cached_prompt,
        "timings": {
            "queue_wait_s": times.queue_wait,
            "ttft_s": times.ttft,
            "tpot_s": times.tpot,
            "latency_s": times.latency,
        },
    }


def _default(value: str, cpu: str, cuda: str) -> str:
    """What to say of a value that is a default."""
    places = [place for place, default in (("CPU", cpu), ("GPU", cuda)) if value == default]
    return " [default]" if len(places) == 2 else f" [default on a {places[0]}]" if places else ""


def _as_text(value: object) -> str:
    """A default as `--set` reads it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


class _Page:
    """Tables in the form of click's help, printed at the end."""

    def __enter__(self) -> "_Page":
        width = min(100, shutil.get_terminal_size((80, 24)).columns)
        self._formatter = click.HelpFormatter(width=max(60, width))
        return self

    def table(self, title: str, rows: list[tuple[str, str]]) -> None:
        """Names, and a text of one or more lines for each."""
        with self._formatter.section(title):
            self._formatter.write_dl(rows, col_max=34)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            emit(self._formatter.getvalue())
