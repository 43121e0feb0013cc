"""Snapshots as text: the same text for the same counts, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracetool.errors import BudgetError
from tracetool.metrics import METRICS, op_calls
from tracetool.snapshots import HEADER, SETTINGS, Entry, Section, Snapshot, parse, to_text

# What could be taken for the text's own syntax, and what Python takes for the end of a line.
names = st.text('ab/\\*x0 "[].\n\r\t\x0b\x1c\x85\u2028é', min_size=1, max_size=8)
entries = st.builds(
    lambda low, more, per: Entry(low, low + more, per),
    st.integers(0, 10**9),
    st.integers(0, 3),
    st.sampled_from(["call", "step", "trace"]),
)
metrics = st.sampled_from(list(METRICS)) | names.map(op_calls)
ranges = st.dictionaries(
    st.lists(names, min_size=1, max_size=3).map(tuple),
    st.dictionaries(metrics, entries, min_size=1, max_size=3),
    max_size=3,
)
values = st.text("ab/\\x0.+,é", min_size=1, max_size=8)
environments = st.dictionaries(st.sampled_from(SETTINGS), values).map(
    lambda told: tuple((name, told[name]) for name in SETTINGS if name in told)
)
records = st.frozensets(st.sampled_from(["device", "memory", "compiles", "op_calls"]))
sections = st.builds(Section, environments, records, ranges)
snapshots = st.lists(sections, max_size=3).map(lambda found: Snapshot({one.environment: one for one in found}))


@given(snapshots)
def test_text_and_back(snapshot):
    text = to_text(snapshot)
    assert parse(text, "s.txt") == snapshot
    assert to_text(parse(text.replace("\n", "\r\n"), "s.txt")) == text


@given(snapshots)
def test_order_does_not_matter(snapshot):
    turned = Snapshot(
        {
            key: Section(
                one.environment,
                one.records,
                {path: dict(reversed(found.items())) for path, found in reversed(one.ranges.items())},
            )
            for key, one in reversed(snapshot.sections.items())
        }
    )
    assert to_text(turned) == to_text(snapshot)


GOOD = f"""{HEADER}

environment
  gpu G
  records device

range f
  kernels 3 a call
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (HEADER, "# tracetool snapshot 2", "s.txt is no snapshot: it begins with '# tracetool snapshot 1'"),
        (HEADER, "", "is no snapshot"),
        ("environment", "enviroment", "s.txt, line 3: 'enviroment' stands before the first 'environment'"),
        ("  gpu G", "  gpus G", "s.txt, line 4: 'gpus G' is no setting of an environment"),
        ("  gpu G", "  gpu", "line 4: 'gpu' is no setting"),
        ("  gpu G", "  gpu G\n  gpu G", "line 5: 'gpu G' is no setting"),
        ("records device", "records devices", "line 3: there is no record of 'devices'"),
        ("range f", "rnge f", "line 7: 'rnge f' is neither a range nor a count"),
        ("3 a call", "three a call", "line 8: 'kernels three a call' is no count"),
        ("3 a call", "3", "line 8: 'kernels 3' is no count"),
        ("kernels 3", "kernls 3", "line 8: 'kernls' is no metric: did you mean 'kernels'?"),
        ("  kernels 3 a call", "  kernels 3 a call\n  kernels 4 a call", "line 9: kernels is there twice"),
        ("  kernels 3 a call", "  kernels 3 a call\nrange f", "line 9: the range is there twice"),
        ("range f", "range f\n<<<<<<< HEAD", "line 8: '<<<<<<< HEAD' is neither a range nor a count"),
        ("\nrange f", "\nenvironment\n  gpu G\n\nrange f", "two sections are for G: leave one of them"),
    ],
)
def test_what_cannot_be_read(old, new, words):
    assert parse(GOOD, "s.txt").sections
    assert old in GOOD
    with pytest.raises(BudgetError) as raised:
        parse(GOOD.replace(old, new, 1), "s.txt")
    assert words in str(raised.value)
