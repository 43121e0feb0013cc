"""Texts that end a request, wherever tokens end; several outputs for one prompt; what goes wrong in one of many."""

import itertools
import random

import pytest

from engine import RequestError, SamplingParams
from engine.output_text import StopTexts
from engine.sequence import FinishReason
from tests.engine.fake import Interrupted, alone, make_llm, model_of


def by_characters(text, stops, include):
    """What is given and found, by the definition: the first moment at which a stop is complete, the longest of them."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


def in_pieces(pieces, stops, include):
    found = StopTexts(tuple(stops), include=include)
    given = []
    for piece in pieces:
        given.append(found.push(piece))
        # Nothing that has been given may turn out to be the beginning of a stop.
        held = "".join(pieces[: len(given)])[len("".join(given)) :]
        assert found.found or not held or any(stop.startswith(held) for stop in stops)
    return "".join(given) + found.flush(), found.found


@pytest.mark.parametrize(
    ("pieces", "stops", "given", "found"),
    [
        (["ab", "cd"], ["bc"], "a", "bc"),
        (["ab", "x"], ["bc"], "abx", None),
        (["aab", "aac"], ["aabaac"], "", "aabaac"),
        (["aabaab", "aac"], ["aabaac"], "aab", "aabaac"),
        (["abc"], ["abc", "b"], "a", "b"),
        (["xabc"], ["bc", "abc"], "x", "abc"),
        (["a", "b"], ["abc"], "ab", None),
        (["", "é", ""], ["é"], "", "é"),
    ],
)
def test_stops_in_pieces(pieces, stops, given, found):
    assert in_pieces(pieces, stops, include=False) == (given, found)
    assert in_pieces(pieces, stops, include=True) == (given + (found or ""), found)


def test_pieces_do_not_matter():
    rng = random.Random(1)
    for _ in range(2000):
        text = "".join(rng.choices("ab", k=rng.randint(0, 12)))
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 3))]
        cuts = sorted(rng.choices(range(len(text) + 1), k=3))
        pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
        include = rng.random() < 0.5
        assert in_pieces(pieces, stops, include) == by_characters(text, stops, include), (text, stops)


class Words:
    """Tokens of two letters, so that stops begin and end inside of tokens."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, token_ids):
        return "".join(f"{'abcdefghijklmnop'[i // 16]}{'abcdefghijklmnop'[i % 16]}" for i in token_ids)


PROMPT = [1, 2, 3]
TOKENS = alone(PROMPT, SamplingParams(max_tokens=20))
TEXT = Words().decode(TOKENS)
FORMS = [{}, {"block_tables": "in_graph", "overlap": "on"}]


@pytest.mark.parametrize("options", FORMS, ids=["eager", "overlap"])
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("where", [0, 5, 6, 11])
def test_a_request_ends_at_a_text_that_straddles_tokens(where, include, options):
    stop = TEXT[where : where + 5]
    end = TEXT.index(stop) + 5
    params = SamplingParams(max_tokens=20, stop=["zz", stop], include_stop=include)
    llm = make_llm(tokenizer=Words(), **options)
    outputs = llm.generate([PROMPT, [4]], [params, SamplingParams(max_tokens=20)])
    assert outputs[0].text == TEXT[: end if include else end - 5]
    assert outputs[0].token_ids == TOKENS[: -(-end // 2)]
    assert outputs[0].finish_reason == FinishReason.STOP
    assert outputs[1].token_ids == alone([4], SamplingParams(max_tokens=20))
    pieces = [increment.text for increment in llm.stream([PROMPT], params)]
    assert "".join(pieces) == outputs[0].text
    assert llm.core.blocks.num_free == llm.core.blocks.num_blocks


def test_what_may_be_the_beginning_of_a_stop_is_held_back_until_it_is_not():
    almost = TEXT[3:8] + "!"
    pieces = [i.text for i in make_llm(tokenizer=Words()).stream([PROMPT], SamplingParams(max_tokens=20, stop=almost))]
    assert pieces[:5] == [TEXT[0:2], TEXT[2:3], "", "", TEXT[3:10]]
    assert "".join(pieces) == TEXT


def test_a_stop_is_found_whoever_steps():
    llm = make_llm(tokenizer=Words())
    llm.add_request(PROMPT, SamplingParams(max_tokens=20, stop=TEXT[6:9]), request_id="a")
    llm.generate([4], SamplingParams(max_tokens=40))
    [increment] = llm.step()
    assert (increment.text, increment.finish_reason) == (TEXT[:6], "stop")


def test_a_tokenizer_that_fails_ends_one_request():
    class Broken(Words):
        def decode(self, token_ids):
            if TOKENS[3] in token_ids:
                raise ValueError("no such token")
            return super().decode(token_ids)

    llm = make_llm(tokenizer=Broken())
    each = [SamplingParams(max_tokens=9, stop="zz"), SamplingParams(max_tokens=9)]
    outputs = llm.generate([PROMPT, [4]], each, detokenize=False)
    assert outputs[0].error == "its text could not be made: ValueError: no such token"
    assert (outputs[0].finish_reason, outputs[1].finish_reason) == ("error", "length")


# Callbacks


@pytest.mark.parametrize("options", FORMS, ids=["eager", "overlap"])
@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_callback_that_raises_ends_its_request_alone(at, options):
    told = []

    def tell(increment):
        told.append(increment)
        if increment.index == 1 and sum(one.index == 1 for one in told) == at:
            raise KeyError("x")

    llm = make_llm(**options)
    params = SamplingParams(max_tokens=6)
    outputs = llm.generate([[1], [2], [3]], params, on_increment=tell)
    assert [output.finish_reason for output in outputs] == ["length", "error", "length"]
    assert outputs[1].error == "on_increment raised KeyError: 'x'"
    assert [output.token_ids for output in outputs] == [alone([i], params)[: at if i == 2 else 6] for i in (1, 2, 3)]
    assert sum(one.index == 1 for one in told) == at
    assert llm.core.blocks.num_free == llm.core.blocks.num_blocks
    assert llm.generate([2], params)[0].token_ids == alone([2], params)


def test_step_by_step_a_request_that_fails_is_told_of_once():
    def tell(_):
        raise ValueError("no")

    llm = make_llm()
    llm.add_request([1], SamplingParams(max_tokens=4), "bad", on_increment=tell)
    llm.add_request([2], SamplingParams(max_tokens=4), "good")
    told = []
    while llm.has_work:
        told += llm.step()
    assert [(one.request_id, one.finish_reason) for one in told if one.finish_reason] == [
        ("bad", "error"),
        ("good", "length"),
    ]


# Several outputs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_size": 3, "num_blocks": 12},
        {"max_num_batched_tokens": 4},
        {"block_tables": "in_graph", "overlap": "on", "cuda_graph": "buckets", "graph_sampling": "inside"},
        {"max_active": 3},
        {"mode": "naive"},
        {"mode": "offline"},
    ],
    ids=str,
)
def test_several_outputs_of_a_prompt(options):
    llm = make_llm(**{"max_active": 8} | options)
    prompts, params = [[1, 2, 3, 4, 5], [6, 7]], SamplingParams(max_tokens=8, temperature=1.5, seed=4, n=3)
    outputs = llm.generate(prompts, params)
    assert [(output.prompt_token_ids, output.sample) for output in outputs] == [
        (prompt, sample) for prompt in prompts for sample in range(3)
    ]
    golden = 0x9E3779B97F4A7C15
    assert [output.token_ids for output in outputs] == [
        alone(prompt, params, seed=(4 + sample * golden) % 2**63) for prompt in prompts for sample in range(3)
    ]
    assert len({tuple(output.token_ids) for output in outputs}) == 6
    assert llm.core.blocks.num_free == llm.core.blocks.num_blocks
    llm.core.check_integrity()


def test_outputs_of_a_prompt_share_its_blocks():
    llm = make_llm(block_size=4, prefix_cache=False)
    llm.add_request(list(range(12)), SamplingParams(max_tokens=9, temperature=1.0, n=4))
    llm.step()
    llm.step()
    tables = [seq.block_table for seq in llm.core.scheduler.running.values()]
    assert len(tables) == 4
    assert all(table[:3] == tables[0][:3] for table in tables)
    assert llm.core.blocks.num_blocks - llm.core.blocks.num_free == 3 + 4
    assert llm.core.stats.prefill_tokens == 12


def test_outputs_that_have_not_begun_end_with_their_request():
    llm = make_llm(max_num_batched_tokens=4)
    stream = llm.stream([list(range(20))], SamplingParams(temperature=1.0, n=3))
    llm.core.step()
    stream.close()
    assert not llm.core.has_work
    assert llm.core.blocks.num_free == llm.core.blocks.num_blocks


def test_an_interrupted_prefill_begins_them_later():
    llm = make_llm()
    params = SamplingParams(max_tokens=4, temperature=1.0, seed=1, n=2)
    llm.add_request([1, 2], params)
    model_of(llm.core).interrupt_in = 0
    with pytest.raises(Interrupted):
        llm.step()
    tokens = {}
    while llm.has_work:
        for one in llm.step():
            tokens.setdefault(one.sample, []).extend(one.token_ids)
    assert tokens[0] == alone([1, 2], params, seed=1)
    assert len(tokens) == 2


def test_more_outputs_than_may_be_under_way_are_refused():
    with pytest.raises(RequestError, match="n is 5, but 4 sequences may be under way; lower n or raise max_active"):
        make_llm(max_num_seqs=4).generate([1], SamplingParams(temperature=1.0, n=5))
