"""What the engine's command lines share: options and where they come from, output, progress, how a run ends."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from engine.config import EngineConfig
from engine.errors import ConfigError, EngineError

FAILED = 2
INTERRUPTED = 130

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

Command = Callable[..., Any]


class Settings:
    """Engine options by name, as a command line sets them, and what set each."""

    def __init__(self, *, pairs: Many[tuple[str, str]] = ()) -> None:
        self._values: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        for name, value in pairs:
            self.put(name, value, f"--set {name}={value}")

    @property
    def values(self) -> dict[str, Any]:
        """What is set."""
        return dict(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def put(self, name: str, value: Any, source: str) -> None:
        """Set an option; None leaves it as it is.

        Args:
            name: Of the option.
            value: As it is or as text.
            source: What sets it, to be named where it turns out to be wrong.

        Raises:
            ConfigError: It has been set already.
        """
        if value is None:
            return
        if name in self._values:
            raise ConfigError(f"{name} is set twice, by {self._sources[name]} and by {source}; keep one of them")
        self._values[name] = value
        self._sources[name] = source

    def config(self, **more: Any) -> EngineConfig:
        """All options, checked one by one.

        Args:
            more: Options besides.

        Raises:
            ConfigError: One does not exist, is not built yet, or cannot have its value.
        """
        with self.explained():
            return EngineConfig.from_options(**self._values, **more)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Errors about an option that another name or a variable has set say so."""
        try:
            yield
        except ConfigError as error:
            named = [
                f"{name} comes from {source}"
                for name, source in self._sources.items()
                if re.search(rf"\b{name}\b", str(error)) and source != flag_of(name) and not source.startswith("--set ")
            ]
            if not named:
                raise
            raise ConfigError(f"{error} ({'; '.join(named)})") from error


def flag_of(name: str) -> str:
    """The flag that has an option's own name."""
    return f"--{name.replace('_', '-')}"


def check_seed(seed: int | None, *, matters: bool) -> None:
    """A seed is for something random.

    Raises:
        ConfigError: It is given, and nothing is random.
    """
    if seed is not None and not matters:
        raise ConfigError("--seed changes nothing here: tokens are chosen greedily and weights come from a checkpoint")


# Options ----------------------------------------------------------------------------------------------------------


def engine_option(flag: str, name: str, about: str | None = None) -> Callable[[Command], Command]:
    """A flag for an engine option, with the engine's own choices and words."""
    option = EngineConfig.__dataclass_fields__[name]
    choices: tuple[str, ...] = option.metadata["choices"]
    least: int | None = option.metadata["least"]
    kind: Any = click.Choice(choices) if choices else None if least is None else click.IntRange(min=least)
    words: str = about or option.metadata["about"]
    return click.option(flag, name, type=kind, metavar=None if choices or least is not None else "NAME", help=words)


def model_options(command: Command) -> Command:
    """`--load-format`, `--device`, `--seed` and `--set`: how a model is had and run."""
    for option in (
        click.option(
            "--set",
            "pairs",
            multiple=True,
            metavar="NAME=VALUE",
            callback=_pairs,
            help="Set any other option of the engine (`python -m engine options` lists them). May be repeated.",
        ),
        engine_option("--seed", "seed", "Of everything that is random; the same seed gives the same."),
        engine_option("--device", "device"),
        engine_option("--load-format", "load_format"),
    ):
        command = option(command)
    return command


def _pairs(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is not NAME=VALUE, as in --set block_size=32")
        pairs.append((name.strip().replace("-", "_"), value.strip()))
    return pairs


# Output -----------------------------------------------------------------------------------------------------------


def emit(text: str) -> None:
    """Write to standard output, at once; a reader that went away, as `head` does, ends the command quietly.

    Raises:
        click.ClickException: It cannot be written.
    """
    if sys.stdout is None:
        raise click.ClickException("standard output is closed")
    try:
        sys.stdout.write(_encodable(text))
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer must not fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise click.exceptions.Exit(0) from None
        raise click.ClickException(f"standard output cannot be written: {error.strerror}") from None


def _encodable(text: str) -> str:
    """The text, with characters written out that standard output's encoding does not have."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding, sys.stdout.errors or "strict")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def check_target(target: str | None) -> None:
    """Refuse a file that cannot be made, before any work is done for it.

    Args:
        target: A file, `-` for standard output, or None.

    Raises:
        ConfigError: It exists, or its folder does not.
    """
    if target is None or target == "-":
        return
    path = Path(target)
    if path.exists():
        raise ConfigError(f"{path} exists already; name another file, or remove it")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {path.parent}; make it first")


def write(text: str, target: str) -> None:
    """Write to what `check_target` let pass.

    Raises:
        ConfigError: It cannot be written.
    """
    if target == "-":
        emit(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}") from None


def has_listener(*, quiet: bool = False) -> bool:
    """Whether a person at a terminal reads standard error, and wants to."""
    return not quiet and sys.stderr is not None and sys.stderr.isatty()


def say(text: str, *, quiet: bool = False) -> None:
    """Tell a person at a terminal, on standard error; nobody else."""
    if has_listener(quiet=quiet):
        click.echo(text, err=True)


def hush_downloads(*, quiet: bool = False) -> None:
    """Leave the hub's progress bars to persons at a terminal; to be called before anything of the hub is imported."""
    if not has_listener(quiet=quiet):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


# How a run ends ---------------------------------------------------------------------------------------------------


def run(cli: click.Group, name: str, arguments: Many[str] | None) -> int:
    """Run a command line. Every failure ends here, as one sentence on standard error and an exit code.

    Args:
        cli: The commands.
        name: Of the program, as `python -m` knows it.
        arguments: Words; those of the process when not given.

    Returns:
        The exit code.
    """
    try:
        result = cli.main(args=arguments, prog_name=f"python -m {name}", standalone_mode=False)
    except EngineError as error:
        return _fail(name, str(error), FAILED)
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _fail(name, error.format_message(), FAILED)
    except (click.Abort, KeyboardInterrupt):
        return _fail(name, "interrupted", INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - no traceback reaches a user
        return _fail(name, _unforeseen(error), FAILED)
    return result if isinstance(result, int) else 0


def _unforeseen(error: Exception) -> str:
    """A sentence for what nobody raised on purpose."""
    if os.environ.get("ENGINE_DEBUG"):
        traceback.print_exc()
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "out of memory; use a smaller batch or model, or lower gpu_memory_utilization or num_blocks with --set"
    return (
        f"a defect in the engine: {type(error).__name__}: {error}; please report it with the output of the same "
        "command under ENGINE_DEBUG=1"
    )


def _fail(name: str, message: str, code: int) -> int:
    click.echo(f"{name}: {message}", err=True)
    return code
