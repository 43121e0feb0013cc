"""Steps of an unchanging batch, whose tokens come to its sequences when somebody looks."""

import numpy as np
import pytest

from engine import SamplingParams
from engine.backlog import Backlog
from engine.sequence import Sequence
from engine.timing import Timing
from tests.engine.fake import alone, make_core, oracle

OVERLAPPED = {"block_tables": "in_graph", "overlap": "on"}
PROMPTS = ([5, 6, 7], [9], [3, 1, 4, 1, 5])


def begun(**options):
    """A core whose requests, which will have 30 tokens each, have decoded for a while; and their sequences."""
    core = make_core(**options)
    seqs = [core.add(prompt, SamplingParams(max_tokens=30)) for prompt in PROMPTS]
    for _ in range(6):
        core.step()
    return core, seqs


def finish(core):
    while core.has_work:
        core.step()


@pytest.mark.parametrize("options", [OVERLAPPED, {"overlap": "off"}], ids=["overlap", "no_overlap"])
def test_tokens_are_given_out_when_somebody_looks(options):
    core, seqs = begun(**options)
    first, *_ = seqs
    got = first.num_tokens
    assert len(first.given) < got
    assert len(first.tokens) == got
    assert [len(seq.given) for seq in seqs] == [seq.num_tokens for seq in seqs]
    assert [len(seq.timing.tokens) for seq in seqs] == [seq.num_output for seq in seqs]
    finish(core)
    assert [seq.output for seq in seqs] == [alone(prompt, SamplingParams(max_tokens=30)) for prompt in PROMPTS]
    assert all(len(seq.timing.tokens) == 30 for seq in seqs)
    assert all(sorted(seq.timing.tokens) == seq.timing.tokens for seq in seqs)


def test_who_is_aborted_or_forked_has_all_its_tokens():
    core, (first, second, third) = begun(**OVERLAPPED)
    core.abort(first.request_id)
    assert first.output == alone(PROMPTS[0], SamplingParams(max_tokens=first.num_output))
    child = core.fork(second.request_id, SamplingParams(max_tokens=20))
    finish(core)
    assert child.output == alone(PROMPTS[1], SamplingParams(max_tokens=20))
    assert third.output == alone(PROMPTS[2], SamplingParams(max_tokens=30))
    core.check_integrity()


def test_full_blocks_are_found_by_who_comes_later():
    core, seqs = begun(**OVERLAPPED)
    for _ in range(8):
        core.step()
    long = seqs[2]
    assert len(long.given) < long.num_tokens
    later = core.add(long.tokens[:13], SamplingParams(max_tokens=1))
    core.step()
    assert later.num_cached_prompt == 12


def test_a_stop_token_ends_its_request_alone():
    params = SamplingParams(max_tokens=30)
    end = alone(PROMPTS[0], params)[8]
    core = make_core(**OVERLAPPED)
    stopping = SamplingParams(max_tokens=30, stop_token_ids=(end,))
    seqs = [core.add(prompt, one) for prompt, one in zip(PROMPTS, (stopping, params, params), strict=True)]
    finish(core)
    assert seqs[0].tokens == oracle(PROMPTS[0], 3, stopping)[0]
    assert [seq.output for seq in seqs[1:]] == [alone(prompt, params) for prompt in PROMPTS[1:]]


def test_an_interrupted_step_loses_no_token(monkeypatch):
    core, seqs = begun(**OVERLAPPED)
    counts = [seq.num_tokens for seq in seqs]
    assert len(seqs[0].given) < counts[0]
    monkeypatch.setattr(core.runner, "decode", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        core.step()
    monkeypatch.undo()
    # Of the step that was under way nothing is known.
    assert [len(seq.given) for seq in seqs] == counts
    finish(core)
    assert [seq.output for seq in seqs] == [alone(prompt, SamplingParams(max_tokens=30)) for prompt in PROMPTS]


class Interrupting(list):
    """Times that Ctrl-C comes in the middle of, once."""

    armed = True

    def __setitem__(self, *args):
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt
        super().__setitem__(*args)


def two_sequences(**params):
    return [Sequence(str(i), [i, i], 2, SamplingParams(**params), 0, Timing(0.0)) for i in range(2)]


def test_what_is_given_out_twice_is_had_once():
    seqs = two_sequences(max_tokens=9)
    seqs[1].timing.tokens = Interrupting()
    backlog = Backlog(seqs)
    assert backlog.take(np.array([5, 6]), 1.0)
    assert backlog.take(np.array([7, 8]), 2.0)
    with pytest.raises(KeyboardInterrupt):
        backlog.give_out()
    backlog.close()
    assert [seq.tokens for seq in seqs] == [[0, 0, 5, 7], [1, 1, 6, 8]]
    assert [list(seq.timing.tokens) for seq in seqs] == [[1.0, 2.0]] * 2
    assert [(seq.num_computed, seq.backlog) for seq in seqs] == [(2, None)] * 2


@pytest.mark.parametrize(
    ("tokens", "taken"),
    [([5, 6], True), ([5, -1], False), ([5, 9], False), ([9, 5], False)],
    ids=["plain", "no token", "a stop token", "another's stop token"],
)
def test_steps_that_may_end_somebody_are_not_taken(tokens, taken):
    seqs = two_sequences(max_tokens=3)
    seqs[1].stops = frozenset({9})
    assert Backlog(seqs).take(np.array(tokens), 0.0) is taken


def test_a_step_that_brings_the_last_token_is_not_taken():
    backlog = Backlog(two_sequences(max_tokens=3))
    assert [backlog.take(np.array([5, 6]), 0.0) for _ in range(3)] == [True, True, False]
    backlog.give_out()
    assert not backlog.take(np.array([5, 6]), 0.0)
