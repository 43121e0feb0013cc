"""The engine at a terminal: text, JSON, options, and every way in which a run can end."""

import dataclasses
import io
import json
import os
import subprocess
import sys

import pytest

import engine
from engine import LLM, EngineConfig, SamplingParams, command
from engine.cli import cli, main
from engine.models.presets import PRESETS
from engine.variants.choice import AXES
from tests.engine.commands import one_sentence

MODEL = ("--model", "tiny-gpt2", "--load-format", "dummy", "--device", "cpu")
LENGTH = ("--max-tokens", "6")


@pytest.fixture
def run(capsys):
    """Runs the command line; gives exit code, standard output and standard error."""

    def call(*arguments):
        code = main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def text_of():
    """What the library makes of prompts."""
    llm = LLM("tiny-gpt2", load_format="dummy", device="cpu")
    return lambda *prompts, n=6: [output.text for output in llm.generate(prompts, SamplingParams(n))]


def piped(monkeypatch, data):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


# Text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_a_prompt_is_continued(run, text_of, stream):
    assert run("generate", *MODEL, *LENGTH, "Hello", *stream) == (0, text_of("Hello")[0] + "\n", "")


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_several_prompts_stand_under_headers_in_their_order(run, text_of, stream):
    long = "a prompt of\nmore than fifty characters, which a header cuts"
    one, two = text_of("Hello", long)
    shown = "a prompt of more than fifty characters, which a..."
    want = f"=== 1 of 2: Hello ===\n{one}\n=== 2 of 2: {shown} ===\n{two}\n"
    assert run("generate", *MODEL, *LENGTH, "Hello", long, *stream) == (0, want, "")


def test_streaming_writes_as_tokens_come_and_in_the_order_of_prompts(monkeypatch):
    """The first prompt's text goes out piece by piece; the second's waits for its turn."""
    pieces = []
    monkeypatch.setattr("engine.cli.emit", pieces.append)
    assert main(["generate", *MODEL, *LENGTH, "--stream", "Hello", "World"]) == 0
    second = next(i for i, piece in enumerate(pieces) if piece.startswith("=== 2"))
    assert second > 3
    # What the second held back comes in one piece, before that of its last step.
    assert len(pieces) == second + 4
    pieces.clear()
    assert main(["generate", *MODEL, *LENGTH, "Hello", "World"]) == 0
    assert len(pieces) == 6


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_a_prompt_from_standard_input(run, text_of, monkeypatch, arguments):
    piped(monkeypatch, "zwölf\n".encode())
    assert run("generate", *MODEL, *LENGTH, *arguments)[1] == text_of("zwölf")[0] + "\n"


def test_json_has_an_object_for_each_request(run, text_of):
    code, out, err = run("generate", *MODEL, *LENGTH, "--json", "Hello", "Hello")
    assert (code, err) == (0, "")
    first, second = (json.loads(line) for line in out.splitlines())
    timings = first.pop("timings")
    assert first == {
        "prompt": "Hello",
        "text": text_of("Hello")[0],
        "token_ids": second["token_ids"],
        "finish_reason": "length",
        "prompt_tokens": 5,
        "cached_prompt_tokens": 0,
    }
    assert set(timings) == {"queue_wait_s", "ttft_s", "tpot_s", "latency_s"}
    assert 0 <= timings["queue_wait_s"] < timings["ttft_s"] < timings["latency_s"]
    assert len(first["token_ids"]) == 6


# Options ----------------------------------------------------------------------------------------------------------


def ids(run, *arguments):
    code, out, err = run("generate", *MODEL, "--json", *arguments)
    assert (code, err) == (0, "")
    return [json.loads(line)["token_ids"] for line in out.splitlines()]


def test_length(run):
    assert len(ids(run, "Hello", "--max-tokens", "3")[0]) == 3
    assert len(ids(run, "Hello")[0]) == 128


def test_stop_token_ids(run):
    tokens = ids(run, "Hello", *LENGTH)[0]
    assert ids(run, "Hello", *LENGTH, "--stop-token-id", tokens[4], "--stop-token-id", tokens[2])[0] == tokens[:3]


def test_temperature_and_seed(run):
    hot = ("Hello", *LENGTH, "--temperature", "1")
    greedy, drawn, again, other = (
        ids(run, *arguments) for arguments in (("Hello", *LENGTH), hot, hot, (*hot, "--seed", "5"))
    )
    assert drawn == again
    assert len({tuple(tokens) for (tokens,) in (greedy, drawn, other)}) == 3


def test_end_of_text(run, tmp_path):
    """With random weights the third token is the end of text."""
    third = ids(run, "Hello", *LENGTH)[0][2]
    config = {"model_type": "gpt2", **PRESETS["tiny-gpt2"][1], "eos_token_id": third}
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = ("generate", "--model", tmp_path, "--load-format", "dummy", "--device", "cpu", *LENGTH, "Hello", "--json")
    ended, went_on = (json.loads(run(*folder, *more)[1]) for more in ((), ("--ignore-eos",)))
    assert (ended["finish_reason"], len(ended["token_ids"])) == ("stop", 3)
    assert (went_on["finish_reason"], len(went_on["token_ids"])) == ("length", 6)


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (("--dtype", "float64"), "dtype", "float64"),
        (("--tokenizer", "byte"), "tokenizer", "byte"),
        (("--seed", "7"), "seed", 7),
        (("--set", "block_size=32"), "block_size", 32),
        (("--set", "prefix-cache=off"), "prefix_cache", False),
        (("--set", "num_blocks=64", "--set", "mode=naive"), "mode", "naive"),
        (("--device", "cpu"), "device", "cpu"),
        (("--load-format", "dummy"), "load_format", "dummy"),
    ],
)
def test_engine_options_reach_the_engine(run, monkeypatch, flags, name, value):
    made = []

    class Recording(LLM):
        def __init__(self, model, **options):
            super().__init__(model, **options)
            made.append(self.config)

    monkeypatch.setattr("engine.llm.LLM", Recording)
    assert run("generate", *MODEL, "--max-tokens", "1", "x", *flags)[0] == 0
    assert getattr(made[0], name) == value


FAILURES = [
    (("--set", "blok_size=3", "x"), "unknown option 'blok_size'; did you mean 'block_size'?"),
    (("--set", "block_size=3.5", "x"), "block_size must be an integer, but is '3.5'"),
    (("--set", "block_size=0", "x"), "block_size must be at least 1, but is 0"),
    (("--top-k", "3", "x"), "top_k=3 needs a temperature above 0, since 0 draws nothing"),
    (("--stop", "", "x"), "a stop must be a text that is not empty, but is ''"),
    (
        ("--set", "admission_force_fifo=3", "x"),
        "admission_force_fifo is for admission='pack'; with 'fifo' it would change nothing",
    ),
    (("--set", "inputs=paper", "x"), "unknown value of inputs 'paper'; there are per_tensor, packed_pinned, on_device"),
    (
        ("--dtype", "float32", "--set", "dtype=float64", "x"),
        "dtype is set twice, by --set dtype=float64 and by --dtype; keep one of them",
    ),
    (
        ("--set", "block_size=8", "--set", "block_size=16", "x"),
        "block_size is set twice, by --set block_size=8 and by --set block_size=16; keep one of them",
    ),
    (("--temperature", "-1", "x"), "temperature must be 0 (greedy) or from 1e-5 to 1e5, but is -1.0"),
    (("--max-tokens", "0", "x"), "max_tokens must be at least 1, but is 0"),
    (("",), "the prompt is empty; give at least one token"),
    (("ok", ""), "prompt 1: the prompt is empty; give at least one token"),
    (("-", "-"), "standard input can be read only once; give - once"),
    (
        ("--json", "--stream", "x"),
        "--json prints a request when it has ended, --stream as it comes; leave one of them out",
    ),
    (("\udcff",), "the prompt '\\udcff' is not text: it has half of a surrogate pair"),
]


@pytest.mark.parametrize(("arguments", "message"), FAILURES, ids=[message[:40] for _, message in FAILURES])
def test_failures_are_one_sentence(run, arguments, message):
    code, out, err = run("generate", *MODEL, *arguments)
    assert (code, out, one_sentence(err, "engine")) == (2, "", message)


def test_models_that_are_not_there(run, tmp_path):
    for model, message in (
        ("tiny-gpt2", "'tiny-gpt2' is a preset, which has random weights: add load_format='dummy'"),
        (f"{tmp_path}/none", f"there is no folder {tmp_path}/none"),
        (tmp_path, f"{tmp_path} has no config.json; a checkpoint in Hugging Face's layout has one"),
    ):
        code, _, err = run("generate", "--model", model, "x")
        assert (code, one_sentence(err, "engine")) == (2, message)


def test_a_seed_that_would_change_nothing(run, checkpoints):
    flags = ("generate", "--model", checkpoints.path("gpt2"), "--device", "cpu", "--max-tokens", "1", "x")
    code, _, err = run(*flags, "--seed", "1")
    assert code == 2
    assert one_sentence(err, "engine").startswith("--seed changes nothing here")
    assert run(*flags, "--seed", "1", "--temperature", "1")[0] == 0


def test_input_that_is_not_text(run, monkeypatch):
    piped(monkeypatch, b"ab\xff")
    assert (
        one_sentence(run("generate", *MODEL)[2], "engine")
        == "standard input is not UTF-8 (invalid start byte at byte 2)"
    )


def test_no_prompt_at_a_terminal(run, monkeypatch):
    piped(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert one_sentence(run("generate", *MODEL)[2], "engine") == (
        "there is no prompt; give one, or - to read one from standard input"
    )


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("generate", "--nonsense"), ("generate",), ("generate", *MODEL, "--set", "block_size", "x")],
)
def test_unknown_options_are_errors(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: python -m engine")
    assert err.splitlines()[-1].startswith("Error: ")


# Who listens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quiet", [False, True])
def test_a_person_at_a_terminal_is_told_what_takes_time(run, monkeypatch, quiet):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, err = run("generate", *MODEL, *LENGTH, "Hello", "World", *(["--quiet"] if quiet else []))
    lines = err.splitlines()
    if quiet:
        assert lines == []
        return
    assert lines[:2] == ["loading tiny-gpt2", "making random weights on cpu"]
    assert lines[2].startswith("12 tokens in ")
    assert lines[2].endswith(" tokens/s, finished by length")


def test_a_terminal_gets_no_control_characters(run, monkeypatch):
    monkeypatch.setattr("engine.tokenizer.ByteTokenizer.decode", lambda _, tokens: "\x1b]0;\x07\x9b" * len(tokens))
    piece = "\x1b]0;\x07\x9b"
    assert run("generate", *MODEL, "x", "--max-tokens", "2")[1] == piece * 2 + "\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("generate", *MODEL, "x", "--max-tokens", "2")[1] == "\ufffd]0;\ufffd\ufffd" * 2 + "\n"


def test_a_reader_that_goes_away_is_no_failure(monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr("sys.stdout", pipe)
        assert main(["generate", *MODEL, *LENGTH, "--stream", "Hello"]) == 0
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_output_that_cannot_be_written(monkeypatch, capsys):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - not a path to anything
        monkeypatch.setattr("sys.stdout", full)
        assert main(["options"]) == 2
        monkeypatch.undo()
    message = one_sentence(capsys.readouterr().err, "engine")
    assert message == "standard output cannot be written: No space left on device"


def test_characters_that_an_encoding_lacks_are_written_out(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    command.emit("zwölf")
    assert out.buffer.getvalue() == b"zw\\xf6lf"


def test_an_interrupt_is_one_line(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(LLM, "stream", interrupted)
    code, out, err = run("generate", *MODEL, "x")
    assert (code, out) == (130, "")
    assert one_sentence(err.removeprefix("\n"), "engine") == "interrupted"


@pytest.mark.parametrize("debug", ["", "1"])
def test_a_defect_is_one_sentence_too(run, monkeypatch, debug):
    def broken(*_, **__):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setenv("ENGINE_DEBUG", debug)
    monkeypatch.setattr(LLM, "stream", broken)
    code, _, err = run("generate", *MODEL, "x")
    assert code == 2
    assert err.splitlines()[-1].startswith("engine: a defect in the engine: ZeroDivisionError: by nothing; please")
    assert ("Traceback" in err) is bool(debug)


def test_no_memory_is_no_defect(run, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(LLM, "stream", full)
    assert one_sentence(run("generate", *MODEL, "x")[2], "engine").startswith("out of memory; use a smaller batch")


# What there is to choose from -------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", ["80", "100"])
def test_lists_are_complete_and_fit(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    pages = {name: run(name)[1] for name in ("variants", "options", "presets")}
    assert all(len(line) <= int(columns) for page in pages.values() for line in page.splitlines())
    for name, axis in AXES.items():
        assert f"{name}: {axis.about}" in pages["variants"]
        assert all(f"\n  {value} " in pages["variants"] for value in axis.values)
    for option in dataclasses.fields(EngineConfig):
        assert f"\n  {option.name}=" in pages["options"]
    for default in ("block_size=16", "prefix_cache=on", "decode_first=off", "num_blocks=none", "seed=0"):
        assert f"\n  {default} " in pages["options"]
    assert all(f"\n  {preset} " in pages["presets"] for preset in PRESETS)


def test_defaults_are_marked(run):
    words = " ".join(run("variants")[1].split())
    apart = sum(axis.cpu != axis.cuda for axis in AXES.values())
    assert apart
    assert words.count("[default on a CPU]") == words.count("[default on a GPU]") == apart
    assert words.count("[default]") == len(AXES) - apart


def test_every_command_has_help(run):
    for name in cli.commands:
        code, out, _ = run(name, "--help")
        assert code == 0
        assert out.startswith(f"Usage: python -m engine {name}")
        assert run(name, "-h")[1] == out


# What is imported when --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        "import engine; engine.EngineConfig(), engine.SamplingParams(), engine.ConfigError",
        "from engine.cli import main; assert main(['generate', '--help']) == 0",
        "from engine.bench.cli import main; assert main(['scheduler', '--help']) == 0",
        "from engine.bench.cli import main; assert main(['streaming', '--nonsense']) == 2",
        "from engine.bench.cli import main; assert main(['scheduler', '--hf-model-id', 'x', '--top-k', '3']) == 2",
    ],
)
def test_help_and_slips_do_not_wait_for_torch(program):
    text = f"import sys\n{program}\nassert not {{'torch', 'numpy', 'transformers', 'triton'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=60, check=True)


def test_the_library_is_reached_lazily():
    assert engine.LLM is LLM
    assert set(engine.__all__) <= {*dir(engine), "LLM", "Increment", "Output"}
    assert [getattr(engine, name).__name__ for name in engine.__all__] == engine.__all__
    with pytest.raises(AttributeError, match=r"module 'engine' has no attribute 'LLm'"):
        engine.LLm  # noqa: B018 - looking is what raises
