"""Ways to spoil a trace: its values, its events, its text, its bytes, and what it is packed in.

Everything is drawn from the `random.Random` that is handed in, so that a seed says all.
"""

from __future__ import annotations

import copy
import gzip
import json
import re
import struct
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

Events = list[Any]

DEEP = 3000
LONG = 100_000

EVIL_VALUES = [
    *("null", "true", "false", "NaN", "-Infinity", "Infinity", "nan", "1e999", "-1e999", "1e-999", "-0.0", "0", "-1"),
    *(str(2**power + more) for power in (31, 32, 52, 53, 61, 62, 63, 64, 80) for more in (-1, 0, 1)),
    *(f"-{2**power}" for power in (31, 53, 62, 63)),
    *("1" + "0" * 400, "9" * 5000, "-" + "9" * 5000, "0." + "3" * 5000, "1e5", "1E+2", "12.0005", "1e-9"),
    *("01", "+1", ".5", "1.", "--1", "0x10", "nothing", "undefined", "'single'", "", "//c\n1", "/* c */ 1"),
    *('""', '"x"', '"7"', '" 7 "', '"1e5"', '"1e999999999"', '"NaN"', '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"'),
    *('"\\x"', '"\\', '"tab\there"', '"line\nbreak"', '"\\u001b[31mred\\u001b[0m"', '"\x1b]0;title\x07"'),
    *('"<script>alert(1)</script>"', '"</script><img src=x onerror=alert(1)>"', '"a|b|`c`\\n# d"', '"::error::x"'),
    *('"%0A::set-output name=x::y"', '"\\u202eevil"', '"\\u2028"', '"a/b*c\\\\d"', '"' + "x" * LONG + '"', '"#1"'),
    *('"ProfilerStep#1"', '"ProfilerStep#99999999999999999999"', '"autograd::engine::evaluate_function: X"'),
    *('"cudaGraphLaunch"', '"cudaLaunchKernel"', '"Memcpy HtoD (Pageable -> Device)"', '"[memory]"', '"٣"', '"1_000"'),
    *("[]", "{}", "[1,2]", '{"a":1}', "[[[]]]", "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "[null]"),
    *("[" + "0," * 3000 + "0]", '{"":""}', '{"name":"x","ph":"X"}'),
]
"""Raw text that takes a value's place."""

FIELDS = ("ph", "cat", "name", "pid", "tid", "ts", "dur", "id", "args", "s", "bp")
ARGS = (
    *("correlation", "External id", "external id", "bytes", "Bytes", "Total Allocated", "Device Type", "name"),
    *("Collective name", "In msg nelems", "Out msg nelems", "dtype", "Call line", "cache_hit", "device", "stream"),
)
CATEGORIES = (
    *("user_annotation", "cpu_op", "kernel", "gpu_memcpy", "gpu_memset", "cuda_sync", "fwdbwd", "python_function"),
    *("cpu_instant_event", "compile", "autotune", "cuda_runtime", "cuda_driver", "ac2g", "gpu_user_annotation", "xyz"),
)
PHASES = ("X", "B", "E", "i", "I", "s", "t", "f", "M", "C", "b", "n", "e", "N", "D", "", "XX")
METADATA = (
    *("schemaVersion", "deviceProperties", "distributedInfo", "displayTimeUnit", "tracetool", "traceName"),
    *("baseTimeNanoseconds", "cuda_runtime_version", "record_shapes", "trace_id", "host"),
)
_PLACE = re.compile(r'"@@(\d+)@@"')
_NUMBERS = re.compile(rb"-?\d+(?:\.\d+)?")
_MARKS = b'"\\{}[],:'


class Raw:
    """Text that stands in JSON as it is."""

    def __init__(self, text: str) -> None:
        self.text = text


def to_text(content: Any, rng: random.Random) -> bytes:
    """JSON in one of the layouts that profilers and other tools write, with its `Raw` texts as they are."""
    pieces: list[str] = []

    def keep(raw: Raw) -> str:
        pieces.append(raw.text)
        return f"@@{len(pieces) - 1}@@"

    layout = rng.choice([{}, {"indent": 1}, {"separators": (",", ":")}, {"separators": (" , ", " : ")}])
    text = json.dumps(content, default=keep, **layout)
    return _PLACE.sub(lambda match: pieces[int(match[1])], text).encode("utf-8", "surrogatepass")


# Events --------------------------------------------------------------------------------------------------------


def part_of(trace: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Some of a trace's events, mostly few: a piece of it, a sample, or now and then all."""
    events = trace["traceEvents"]
    how = rng.random()
    if how < 0.01:
        kept = list(events)
    elif how < 0.6:
        begin = rng.randrange(len(events))
        kept = events[begin : begin + rng.randint(1, 300)]
    else:
        rows = sorted(rng.sample(range(len(events)), min(len(events), rng.randint(1, 300))))
        kept = [events[row] for row in rows]
    return {**trace, "traceEvents": copy.deepcopy(kept)}


def evil(rng: random.Random) -> Raw:
    return Raw(rng.choice(EVIL_VALUES))


def _some(events: Events, rng: random.Random) -> list[dict[str, Any]]:
    """One event, a few or all, of those that are objects."""
    objects = [one for one in events if isinstance(one, dict)]
    if not objects:
        return []
    return rng.sample(objects, rng.choice([1, 1, 1, min(5, len(objects)), len(objects)]))


def _args_of(event: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(event.get("args"), dict):
        event["args"] = {}
    return event["args"]


def retype_field(events: Events, rng: random.Random) -> None:
    field, value = rng.choice(FIELDS), evil(rng)
    for event in _some(events, rng):
        event[field] = value


def retype_arg(events: Events, rng: random.Random) -> None:
    key, value = rng.choice(ARGS), evil(rng)
    for event in _some(events, rng):
        _args_of(event)[key] = value


def drop_field(events: Events, rng: random.Random) -> None:
    field = rng.choice(FIELDS)
    for event in _some(events, rng):
        event.pop(field, None)


def drop_arg(events: Events, rng: random.Random) -> None:
    key = rng.choice(ARGS)
    for event in _some(events, rng):
        _args_of(event).pop(key, None)


def repeat_key(events: Events, rng: random.Random) -> None:
    for number, event in enumerate(events):
        if isinstance(event, dict) and rng.random() < 0.2:
            field = rng.choice(FIELDS)
            text = json.dumps(event, default=lambda raw: raw.text)
            events[number] = Raw(f'{{"{field}": {rng.choice(EVIL_VALUES)}, {text[1:]}' if text != "{}" else text)


def other_times(events: Events, rng: random.Random) -> None:
    kind = rng.randrange(7)
    shift = rng.choice([-(10**6), 1, 0.0005, 10**12, 4.4e18, -(2**62) / 1000])
    for event in _some(events, rng):
        ts = event.get("ts")
        if kind == 0:
            event["dur"] = -abs(rng.random() * 1e6)
        elif kind == 1:
            event["ts"], event["dur"] = 1000, rng.choice([0, 1, 5])
        elif kind == 2 and isinstance(ts, int | float):
            event["ts"] = ts + shift
        elif kind == 3:
            event["ts"] = Raw(f"{rng.randrange(10**15)}.{'0123456789' * rng.randint(0, 5)}")
        elif kind == 4:
            event["dur"] = Raw(str(rng.choice([2**52, 2**53 - 1, 9e12, "1e-7", "0.0004999"])))
        elif kind == 5:
            event["ts"] = -abs(rng.random() * 1e9)
        else:
            event["ts"], event["dur"] = rng.randint(0, 40), rng.randint(0, 40)


def other_links(events: Events, rng: random.Random) -> None:
    key = rng.choice(["correlation", "External id", "id", "tid", "pid"])
    value = rng.choice([0, 1, -1, 2**62, 5])
    for event in _some(events, rng):
        (event if key in ("id", "tid", "pid") else _args_of(event))[key] = value


def other_kinds(events: Events, rng: random.Random) -> None:
    field, values = rng.choice([("cat", CATEGORIES), ("ph", PHASES)])
    for event in _some(events, rng):
        event[field] = rng.choice(values)


def other_names(events: Events, rng: random.Random) -> None:
    names = [json.loads(text) for text in EVIL_VALUES if text[:1] == '"' and _is_json(text)]
    for event in _some(events, rng):
        event["name"] = rng.choice(names)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def duplicate_events(events: Events, rng: random.Random) -> None:
    for event in _some(events, rng):
        events += [copy.deepcopy(event) for _ in range(rng.choice([1, 2, 40]))]


def shuffle_events(events: Events, rng: random.Random) -> None:
    rng.shuffle(events)


def drop_events(events: Events, rng: random.Random) -> None:
    events[:] = [event for event in events if rng.random() < 0.5]


def add_strangers(events: Events, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 20])):
        events.insert(rng.randint(0, len(events)), evil(rng))


def nest_events(events: Events, rng: random.Random) -> None:
    """Many ranges in each other, under one name or many."""
    depth, one_name = rng.choice([10, 10, 10, 200, 200, 700]), rng.random() < 0.5
    events += [
        {
            "ph": "X",
            "cat": rng.choice(["user_annotation", "cpu_op"]) if depth < 1000 else "user_annotation",
            "name": "deep" if one_name else f"deep {level}",
            "pid": 1,
            "tid": 1,
            "ts": level,
            "dur": 2 * (depth - level),
            "args": {"External id": level},
        }
        for level in range(depth)
    ]


def tangle_flows(events: Events, rng: random.Random) -> None:
    """Flows between all threads, in circles too."""
    threads = list({(e.get("pid"), e.get("tid")) for e in events if isinstance(e, dict) and _hashable(e)}) or [(1, 1)]
    for number in range(rng.choice([1, 5, 60])):
        for phase in rng.choice(["sf", "fs", "s", "f", "ssff", "stf"]):
            pid, tid = rng.choice(threads)
            where = {"pid": pid, "tid": tid, "ts": rng.randint(0, 10**6)}
            events.append({"ph": phase, "cat": "fwdbwd", "name": "fwdbwd", "id": rng.choice([number, 7]), **where})


def _hashable(event: dict[str, Any]) -> bool:
    return all(isinstance(event.get(key), int | str | None) for key in ("pid", "tid"))


EVENT_MUTATIONS: tuple[Callable[[Events, random.Random], None], ...] = (
    *(retype_field, retype_field, retype_arg, retype_arg, drop_field, drop_arg, repeat_key, other_times, other_links),
    *(other_kinds, other_names, duplicate_events, shuffle_events, drop_events, add_strangers, nest_events),
    tangle_flows,
)


def spoil_metadata(trace: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Other values under the keys beside the events, and the events elsewhere among them."""
    spoilt = {**trace, rng.choice(METADATA): evil(rng)}
    ours = spoilt.get("tracetool")
    if isinstance(ours, dict) and ours:
        spoilt["tracetool"] = {**ours, rng.choice([*ours, "unprofiled_ns_per_step", "compiles", "gpu"]): evil(rng)}
    keys = list(spoilt)
    rng.shuffle(keys)
    return {key: spoilt[key] for key in keys}


# Text and bytes ------------------------------------------------------------------------------------------------


def _place(data: bytes, rng: random.Random) -> int:
    return rng.randint(0, len(data))


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def remove_piece(data: bytes, rng: random.Random) -> bytes:
    begin = _place(data, rng)
    return data[:begin] + data[begin + rng.choice([1, 2, 50, 2000]) :]


def repeat_piece(data: bytes, rng: random.Random) -> bytes:
    begin = _place(data, rng)
    end = begin + rng.choice([1, 30, 3000])
    return data[:end] + data[begin:end] * rng.choice([1, 1, 20]) + data[end:]


def swap_pieces(data: bytes, rng: random.Random) -> bytes:
    one, two, three = sorted(_place(data, rng) for _ in range(3))
    return data[:one] + data[two:three] + data[one:two] + data[three:]


def add_noise(data: bytes, rng: random.Random) -> bytes:
    begin = _place(data, rng)
    return data[:begin] + rng.randbytes(rng.choice([1, 4, 400])) + data[begin:]


def flip_bytes(data: bytes, rng: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.choice([1, 3, 100])):
        if spoilt:
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    return bytes(spoilt)


def spoil_marks(data: bytes, rng: random.Random) -> bytes:
    """Quotes, brackets, commas and backslashes in the place of others."""
    places = [place for place, byte in enumerate(data) if byte in _MARKS]
    spoilt = bytearray(data)
    for place in rng.sample(places, min(len(places), rng.choice([1, 2, 20]))):
        spoilt[place] = rng.choice(_MARKS)
    return bytes(spoilt)


def spoil_numbers(data: bytes, rng: random.Random) -> bytes:
    evils = [text.encode() for text in EVIL_VALUES[:60]]
    share = rng.choice([0.001, 0.05])
    return _NUMBERS.sub(lambda match: rng.choice(evils) if rng.random() < share else match[0], data)


def wrap(data: bytes, rng: random.Random) -> bytes:
    before = rng.choice(
        [b"", b"\xef\xbb\xbf", b" \r\n", b"\x00", b"junk", b"[", b'{"x":', b"\xff\xfe", b"/*c*/", b")]}'"]
    )
    after = rng.choice([b"", b"\x00" * 300, b" more", b"]", b"}", data, b",", b"\n" * 5000, b'{"traceEvents":[]}'])
    return before + data + after


def recode(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(
        rng.choice(["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-8-sig", "utf-7"]), "replace"
    )


def other_line_ends(data: bytes, rng: random.Random) -> bytes:
    return data.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\x0b", b"\xe2\x80\xa8", b""]))


BYTE_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(cut, remove_piece, repeat_piece, swap_pieces, add_noise, flip_bytes, spoil_marks, spoil_numbers, wrap, recode),
    other_line_ends,
)


def packed(data: bytes, rng: random.Random) -> bytes:
    """The bytes in gzip, rightly or wrongly, or in what is none."""
    good = gzip.compress(data, rng.choice([0, 1, 6]), mtime=0)
    half = len(data) // 2
    return rng.choice(
        [
            lambda: good,
            lambda: good,
            lambda: cut(good, rng),
            lambda: flip_bytes(good, rng),
            lambda: add_noise(good, rng),
            lambda: gzip.compress(good),
            lambda: gzip.compress(data[:half]) + gzip.compress(data[half:]),
            lambda: good + rng.choice([b"\x00" * 100, b"garbage", good, b"\x1f\x8b", b"\x1f"]),
            lambda: good[:-8] + struct.pack("<II", zlib.crc32(data), rng.randrange(2**32)),
            lambda: good[:-8] + struct.pack("<II", rng.randrange(2**32), len(data) & 0xFFFFFFFF),
            lambda: b"\x1f\x8b\x08" + bytes([rng.randrange(256)]) + good[4:],
            lambda: b"\x1f\x8b" + bytes([rng.randrange(256)]) + good[3:],
            lambda: zlib.compress(data),
            lambda: b"PK\x03\x04" + data[:500],
            lambda: b"\x28\xb5\x2f\xfd" + data[:500],
        ]
    )()


def spoilt_trace(trace: dict[str, Any], rng: random.Random) -> tuple[bytes, int]:
    """A trace, spoilt in up to five ways, and how long its text is."""
    content: Any = part_of(trace, rng)
    level = rng.random()
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        rng.choice(EVENT_MUTATIONS)(content["traceEvents"], rng)
    if rng.random() < 0.15:
        content = spoil_metadata(content, rng)
    if rng.random() < 0.1:
        content = content["traceEvents"]
    data = to_text(content, rng)
    if level > 0.6:
        for _ in range(rng.choice([1, 1, 2])):
            data = rng.choice(BYTE_MUTATIONS)(data, rng)
    return packed(data, rng) if rng.random() < 0.2 else data, len(data)


def spoilt_text(text: str, rng: random.Random, words: tuple[str, ...]) -> bytes:
    """Settings or a snapshot, line by line, word by word and byte by byte."""
    lines = text.split("\n")
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(lines))
        how = rng.randrange(6)
        if how == 0:
            del lines[place]
        elif how == 1:
            lines.insert(rng.randint(0, len(lines)), lines[place])
        elif how == 2:
            other = rng.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
        elif how == 3:
            parts = lines[place].split(" ")
            parts[rng.randrange(len(parts))] = rng.choice([*words, *EVIL_VALUES])
            lines[place] = " ".join(parts)
        elif how == 4:
            lines[place] = re.sub(r"\d+", lambda _: rng.choice(EVIL_VALUES), lines[place], count=1)
        else:
            lines.insert(place, rng.choice([*words, *EVIL_VALUES]))
        lines = lines or [""]
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    return rng.choice(BYTE_MUTATIONS)(data, rng) if rng.random() < 0.3 else data
