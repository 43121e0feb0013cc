"""Lining up sequences: nothing is guessed, and nothing that is certain is left."""

import itertools
import string
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracetool import graphs
from tracetool.graphs import ASKED, Doubt, Stretch, align, edits, least_edits

FEW = settings(max_examples=300, deadline=None)
MANY = settings(FEW, max_examples=10_000)


def stretch(pieces, lanes=None):
    """Pieces as pairs of a thing and a place (None: asked about)."""
    thing = np.array([thing for thing, _ in pieces], dtype=np.int64)
    place = np.array([ASKED if place is None else place for _, place in pieces], dtype=np.int64)
    return Stretch(thing, place, np.array(lanes or [0] * len(pieces), dtype=np.int64))


def written(text):
    """`k1 m2 k`: things are letters, places digits; without a digit it is asked where the piece belongs."""
    return [(string.ascii_lowercase.index(word[0]), int(word[1:]) if word[1:] else None) for word in text.split()]


def places(replay, eager):
    """The places of what is asked about: a digit, `-` where there is no such thing, `?` where it is unclear."""
    found = align(stretch(written(replay)), stretch(written(eager)))
    asked = [place for place, (_, known) in zip(found.place.tolist(), written(replay), strict=True) if known is None]
    return "".join({Doubt.ABSENT: "-", Doubt.UNCLEAR: "?"}.get(place, str(place)) for place in asked)


@pytest.mark.parametrize(
    ("replay", "eager", "expected"),
    [
        ("a b c", "a1 b2 c3", "123"),
        ("a a a", "a1 a2 a2", "122"),
        # Something is gone, something is new, something has another name.
        ("a c", "a1 b2 c3", "13"),
        ("a x c", "a1 c3", "1-3"),
        ("a x c", "a1 b2 c3", "1-3"),
        # A run of equal kernels of another length: clear where all have one place.
        ("a a", "a1 a1 a1", "11"),
        ("a a", "a1 a1 a2", "1?"),
        ("a a", "a1 a2", "12"),
        ("a", "a1 a2", "?"),
        ("a a a", "a1 a2", "???"),
        ("a a a", "a1 a1", "???"),
        # Between pieces that are clear, a stretch that agrees is clear too.
        ("b a a c a", "b1 a1 a2 c3 a4", "11234"),
        ("b a c a a", "b1 a1 a2 c3 a4 a5", "1?345"),
        ("b a a c a", "b1 a1 c3 a4", "1??34"),
        # Crossing pieces: as many assignments hold one as the other.
        ("a b", "b1 a2", "??"),
        ("a b c", "b1 a2 c3", "??3"),
        # Known pieces tie down what lies between, and only match their own place.
        ("a1 a a2", "a1 a3 a2", "3"),
        ("a1 a", "a1 a3 a2", "?"),
        ("a1 a a2", "a1 a1 a2", "1"),
        ("a9 a", "a1", "1"),
        ("a9 a", "a1 a9", "?"),
        ("b9 a b9", "a1 b9 a2 b9 a3", "2"),
        ("", "a1", ""),
        ("a", "", "-"),
    ],
)
def test_what_is_clear(replay, eager, expected):
    assert places(replay, eager) == expected


# An oracle -----------------------------------------------------------------------------------------------------


def assignments(replay, eager):
    """All largest assignments of one stream, as tuples of partners (None: left out), by trying everything."""

    def every(row, column):
        if row == len(replay):
            yield ()
            return
        for rest in every(row + 1, column):
            yield (None, *rest)
        thing, place = replay[row]
        for partner in range(column, len(eager)):
            if eager[partner][0] == thing and place in (None, eager[partner][1]):
                for rest in every(row + 1, partner + 1):
                    yield (partner, *rest)

    found = list(every(0, 0))
    most = max(sum(partner is not None for partner in one) for one in found)
    return [one for one in found if sum(partner is not None for partner in one) == most], most


things = st.integers(0, 2)
known = st.tuples(things, st.integers(0, 2))
asked = st.tuples(things, st.none())


def agrees_with_the_oracle(replay, eager):
    best, most = assignments(replay, eager)
    label = np.arange(len(eager)) % 2
    found = align(stretch(replay), stretch(eager), [label])
    there = {thing for thing, _ in eager}
    for row, (thing, place) in enumerate(replay):
        if place is not None:
            continue
        partners = {one[row] for one in best}
        possible = {None if partner is None else eager[partner][1] for partner in partners}
        labels = {None if partner is None else int(label[partner]) for partner in partners}
        clear = possible.pop() if len(possible) == 1 else None
        if thing not in there:
            assert found.place[row] == Doubt.ABSENT
        else:
            assert found.place[row] == (Doubt.UNCLEAR if clear is None else clear)
        expected = labels.pop() if len(labels) == 1 else None
        assert found.labels[0][row] == (-1 if expected is None else expected)
        if clear is not None:
            assert found.partner[row] in partners
    partners = [found.partner[row] for row, (_, place) in enumerate(replay) if place is None and found.place[row] >= 0]
    assert all(one < other for one, other in itertools.pairwise(partners))
    if any(place is None and thing in there for thing, place in replay):
        assert edits(stretch(replay), stretch(eager)) == len(replay) + len(eager) - 2 * most
    assert least_edits(stretch(replay), stretch(eager)) <= edits(stretch(replay), stretch(eager))


@FEW
@given(
    replay=st.lists(st.one_of(asked, asked, known), max_size=6),
    eager=st.lists(known, max_size=6),
    block=st.integers(1, 4),
)
def test_exactly_what_all_largest_assignments_agree_on_is_given(replay, eager, block):
    with mock.patch.object(graphs, "_BLOCK", block):
        agrees_with_the_oracle(replay, eager)


@pytest.mark.slow
@MANY
@given(
    replay=st.lists(st.one_of(asked, asked, known), max_size=8),
    eager=st.lists(known, max_size=8),
    block=st.sampled_from([1, 3, 64]),
)
def test_exactly_what_all_largest_assignments_agree_on_is_given_thousands_of_times(replay, eager, block):
    with mock.patch.object(graphs, "_BLOCK", block):
        agrees_with_the_oracle(replay, eager)


# Several streams -----------------------------------------------------------------------------------------------


def on_streams(text):
    """`k1@0 m2@1`: as `written`, and the stream."""
    words = [word.partition("@") for word in text.split()]
    return stretch(written(" ".join(word for word, _, _ in words)), [int(lane) for _, _, lane in words])


@pytest.mark.parametrize(
    ("replay", "eager", "expected"),
    [
        # Each stream in its own order, however they interleave.
        ("a@0 b@1 a@0 b@1", "a1@0 a2@0 b3@1 b4@1", [1, 3, 2, 4]),
        ("b@1 b@1 a@0 a@0", "a1@0 b3@1 a2@0 b4@1", [3, 4, 1, 2]),
        # One thing on two streams, of either side: which is which nobody can say, unless it does not matter.
        ("a@0 a@1", "a1@0 a2@1", [Doubt.UNCLEAR] * 2),
        ("a@0 a@1", "a1@0 a2@0", [Doubt.UNCLEAR] * 2),
        ("a@0 a@0", "a1@0 a2@1", [Doubt.UNCLEAR] * 2),
        ("a@0 a@1", "a1@0 a1@1", [1, 1]),
        ("a@0 a@1", "a1@0 a1@1 a1@1", [1, 1]),
        ("a@0 a@1 a@1", "a1@0 a1@1", [Doubt.UNCLEAR] * 3),
        # What is clear on one stream does not suffer from what is not on another.
        ("c@0 a@0 c@0 a@1 d@1", "c1@0 a2@0 c3@0 a4@1 d5@1", [1, Doubt.UNCLEAR, 3, Doubt.UNCLEAR, 5]),
        # Time says nothing of order between streams: by its place among the b, the a would be the second.
        ("b@1 b@1 a@0", "a1@0 b3@1 b3@1 a2@0", [3, 3, Doubt.UNCLEAR]),
    ],
)
def test_order_tells_only_along_a_stream(replay, eager, expected):
    assert align(on_streams(replay), on_streams(eager)).place.tolist() == expected


@st.composite
def captured(draw):
    """An eager run on two streams, and a replay in an order that a graph of it allows, with the true places.

    The replay may lack pieces, or have some that are not there, but not both; and names of neither that fit the other.
    """
    eager = draw(st.lists(st.tuples(things, st.integers(0, 2), st.integers(0, 1)), max_size=10))
    left = {lane: [number for number, piece in enumerate(eager) if piece[2] == lane] for lane in (0, 1)}
    order = []
    while any(left.values()):
        lane = draw(st.sampled_from([lane for lane, pieces in left.items() if pieces]))
        order.append(left[lane].pop(0))
    lanes = draw(st.sampled_from([(0, 0), (0, 1), (1, 0)]))
    if lanes == (0, 0):
        # On one stream a graph runs in the order of the capture.
        order.sort()
    replay = [(eager[number][0], lanes[eager[number][2]], eager[number][1]) for number in order]
    for place in sorted(draw(st.lists(st.integers(0, 12), max_size=3)), reverse=True):
        if draw(st.booleans()):
            replay[place : place + 1] = [(7, lanes[0], None)] if draw(st.booleans()) else []
    return eager, replay


@settings(FEW, max_examples=500)
@given(both=captured())
def test_what_is_given_is_true(both):
    eager, replay = both
    found = align(
        stretch([(thing, None) for thing, _, _ in replay], [lane for _, lane, _ in replay]),
        stretch([(thing, place) for thing, place, _ in eager], [lane for _, _, lane in eager]),
    )
    for place, (_, _, truth) in zip(found.place.tolist(), replay, strict=True):
        assert place < 0 or place == truth


# Length --------------------------------------------------------------------------------------------------------


def layers(count, per_layer=20):
    """A model's decode step: things that repeat in each layer, and in it."""
    layer = [(thing % 7, 1 + thing // 5) for thing in range(per_layer)]
    return layer * count


def test_long_sequences_that_agree_but_for_names():
    eager = layers(500)
    replay = [(thing if number % 20 else 9, None) for number, (thing, _) in enumerate(eager)]
    found = align(stretch(replay), stretch(eager)).place
    assert np.count_nonzero(found == Doubt.ABSENT) == 500
    assert [place for number, place in enumerate(found.tolist()) if number % 20] == [
        place for number, (_, place) in enumerate(eager) if number % 20
    ]


def test_a_kernel_that_is_gone_costs_nothing_else():
    eager = layers(40)
    replay = [(thing, None) for number, (thing, _) in enumerate(eager) if number != 322]
    truth = [place for number, (_, place) in enumerate(eager) if number != 322]
    assert align(stretch(replay), stretch(eager)).place.tolist() == truth


def test_sequences_that_are_too_long_are_lined_up_only_where_they_are_equal(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_PAIRS", 15)
    eager = written("a1 b2 c3 d4")
    assert align(stretch([(thing, None) for thing, _ in eager]), stretch(eager)).place.tolist() == [1, 2, 3, 4]
    swapped = stretch(written("a b d c"))
    assert align(swapped, stretch(eager)).place.tolist() == [Doubt.TOO_LONG] * 4
    assert edits(swapped, stretch(eager)) == 8
    monkeypatch.setattr(graphs, "MOST_PAIRS", 16)
    assert align(swapped, stretch(eager)).place.tolist() == [1, 2, Doubt.UNCLEAR, Doubt.UNCLEAR]
    assert edits(swapped, stretch(eager)) == 2
