"""The engine as a library: generate, stream, requests step by step, and whatever goes wrong."""

import itertools
import sys

import pytest

from engine import RequestError, SamplingParams
from engine.sequence import FinishReason
from tests.engine.fake import Interrupted, alone, make_llm, model_of

PROMPTS = [[1, 2, 3], [4], list(range(10, 21)), [1, 2, 3, 4, 5], [200, 100]]


def params(max_tokens=8, **more):
    return SamplingParams(max_tokens=max_tokens, **more)


def tokens(outputs):
    return [output.token_ids for output in outputs]


def still_serves(llm):
    """It serves every prompt right, and nothing is left of what came before."""
    assert tokens(llm.generate(PROMPTS, params())) == [alone(prompt, params()) for prompt in PROMPTS]
    assert not llm.has_work
    assert llm.core.blocks.num_free == llm.core.blocks.num_blocks
    llm.core.check_integrity()


def steps_at_most(llm, count):
    """Fail where the engine would go round in circles."""
    step, left = llm.core.step, itertools.repeat(None, count)

    def counted():
        next(left)
        return step()

    llm.core.step = counted


# Generate


def test_a_text_gives_a_text():
    [output] = make_llm().generate("Hello", params())
    assert output.prompt_token_ids == list(b"Hello")
    assert output.token_ids == alone(list(b"Hello"), params())
    assert output.text == bytes(output.token_ids).decode(errors="replace")


@pytest.mark.parametrize("prompt", [[7, 8, 9], (7, 8, 9), [[7, 8, 9]]], ids=str)
def test_token_ids_are_one_prompt(prompt):
    assert tokens(make_llm().generate(prompt, params())) == [alone([7, 8, 9], params())]


def test_texts_and_token_ids_go_together():
    outputs = make_llm().generate(["ab", [1, 2]], params())
    assert [output.prompt_token_ids for output in outputs] == [[97, 98], [1, 2]]


def test_no_prompts_give_no_outputs():
    assert make_llm().generate([]) == []


def test_each_prompt_has_its_own_parameters_and_outputs_have_the_order_of_prompts():
    each = [params(max_tokens=9 - 2 * i) for i in range(len(PROMPTS) - 1)] + [params(max_tokens=20)]
    outputs = make_llm(max_num_seqs=2).generate(PROMPTS, each)
    assert tokens(outputs) == [alone(*pair) for pair in zip(PROMPTS, each, strict=True)]


def test_128_tokens_are_generated_when_nobody_says_how_many():
    [output] = make_llm(max_model_len=400, num_blocks=100).generate([1])
    assert len(output.token_ids) == 128


def test_texts_can_be_left_out():
    [output] = make_llm().generate("Hello", params(), detokenize=False)
    assert (output.text, len(output.token_ids)) == ("", 8)


def test_after_each_step_it_is_told_how_many_have_ended():
    ended = []
    make_llm().generate([[1], [2]], [params(max_tokens=1), params(max_tokens=3)], on_step=ended.append)
    assert ended == [1, 1, 2]


def test_an_output_says_what_was_cached_and_how_often_it_was_preempted():
    llm = make_llm(block_size=2, num_blocks=8)
    first = llm.generate([1, 2, 3, 4, 5], params(max_tokens=1))
    again = llm.generate([1, 2, 3, 4, 6], params(max_tokens=1))
    assert [output.num_cached_prompt for output in first + again] == [0, 4]
    outputs = llm.generate([[1, 2, 3]] * 3, params())
    assert sum(output.num_preemptions for output in outputs) == llm.core.stats.preemptions > 0


def test_cached_prefixes_can_be_forgotten():
    llm = make_llm(block_size=2)
    llm.generate([1, 2, 3, 4, 5], params())
    llm.reset_prefix_cache()
    assert llm.generate([1, 2, 3, 4, 5], params())[0].num_cached_prompt == 0


def test_times_are_in_order():
    llm = make_llm(max_active=1)
    for output in llm.generate(PROMPTS, params()):
        timing = output.timing
        moments = [timing.arrived, timing.admitted, timing.first_token, *timing.tokens, timing.finished]
        assert moments == sorted(moments)
        assert len(timing.tokens) == len(output.token_ids)
        assert timing.tokens[0] == timing.first_token


def test_times_of_admission_and_first_token_outlive_a_preemption():
    llm = make_llm(block_size=2, num_blocks=8)
    for output in llm.generate([[1, 2, 3]] * 3, params()):
        assert output.timing.admitted <= output.timing.first_token == output.timing.tokens[0]


# How a request ends

WANTED = alone([1, 2, 3], params(max_tokens=61))


@pytest.mark.parametrize(
    ("end", "options", "length", "reason"),
    [
        ({"max_tokens": 1}, {}, 1, FinishReason.LENGTH),
        ({"max_tokens": 5}, {}, 5, FinishReason.LENGTH),
        ({"max_tokens": 500}, {}, 61, FinishReason.LENGTH),
        ({"max_tokens": 500}, {"max_model_len": 4}, 1, FinishReason.LENGTH),
        ({"max_tokens": 500, "stop_token_ids": [WANTED[3], WANTED[6]]}, {}, 4, FinishReason.STOP),
        ({"max_tokens": 500, "stop_token_ids": (WANTED[0],)}, {}, 1, FinishReason.STOP),
        ({"max_tokens": 500}, {"eos": [WANTED[6], WANTED[3]]}, 4, FinishReason.STOP),
        ({"max_tokens": 5, "ignore_eos": True}, {"eos": [WANTED[3]]}, 5, FinishReason.LENGTH),
        ({"max_tokens": 9, "ignore_eos": True, "stop_token_ids": [WANTED[3]]}, {"eos": [2]}, 4, FinishReason.STOP),
        ({"max_tokens": 4, "stop_token_ids": [WANTED[3]]}, {}, 4, FinishReason.STOP),
    ],
)
def test_a_request_ends(end, options, length, reason):
    llm = make_llm(**options)
    [output] = llm.generate([1, 2, 3], SamplingParams(**end))
    assert (output.token_ids, output.finish_reason) == (WANTED[:length], reason)
    [*_, last] = llm.stream([1, 2, 3], SamplingParams(**end))
    assert last.finish_reason == reason


# Random numbers


def drawn(seeds, **options):
    each = [params(temperature=1.0, seed=seed) for seed in seeds]
    return tokens(make_llm(**options).generate([[1, 2, 3]] * len(seeds), each))


def test_a_seed_gives_the_same_tokens_whatever_else_is_served():
    [wanted] = drawn([5])
    assert wanted == alone([1, 2, 3], params(temperature=1.0), seed=5)
    assert drawn([1, 5, 2, 5])[1::2] == [wanted, wanted]
    assert drawn([5] * 4, block_size=2, num_blocks=8) == [wanted] * 4
    assert drawn([5] * 4, max_num_batched_tokens=2) == [wanted] * 4
    assert drawn([5], sampler="item_loop") == [wanted]


def test_seeds_differ():
    assert len({tuple(one) for one in drawn(range(20))}) > 15


def test_without_seeds_requests_differ_and_runs_repeat():
    first = drawn([None] * 4)
    assert len({tuple(one) for one in first}) == 4
    assert drawn([None] * 4) == first
    assert drawn([None] * 4, seed=1) != first


def test_greedy_and_drawn_go_together():
    each = [params(), params(temperature=1.0, seed=3), params()]
    outputs = make_llm().generate([[1], [1], [2]], each)
    assert tokens(outputs) == [alone([1], each[0]), alone([1], each[1], seed=3), alone([2], each[2])]


# Stream


def collect(increments, count):
    """Texts and tokens by index, and how each ended; nothing comes after an end."""
    texts, ids, reasons = [""] * count, [[] for _ in range(count)], [None] * count
    for increment in increments:
        assert reasons[increment.index] is None
        assert increment.token_ids
        texts[increment.index] += increment.text
        ids[increment.index] += increment.token_ids
        reasons[increment.index] = increment.finish_reason
    return texts, ids, reasons


def test_increments_make_the_outputs_of_generate():
    each = [params(max_tokens=3 + i, stop_token_ids=range(0, 256, 16)) for i in range(len(PROMPTS))]
    outputs = make_llm().generate(PROMPTS, each)
    texts, ids, reasons = collect(make_llm().stream(PROMPTS, each), len(PROMPTS))
    assert texts == [output.text for output in outputs]
    assert ids == tokens(outputs)
    assert reasons == [output.finish_reason for output in outputs]


def test_an_increment_comes_after_each_step():
    stream = make_llm().stream([1, 2, 3], params(max_tokens=3))
    assert [increment.token_ids for increment in stream] == [
        [token] for token in alone([1, 2, 3], params(max_tokens=3))
    ]


def test_two_streams_go_side_by_side():
    llm = make_llm()
    left, right = llm.stream(PROMPTS[:2], params()), llm.stream(PROMPTS[2:4], params(max_tokens=5))
    pairs = list(itertools.zip_longest(left, right))
    for number, (prompts, how) in enumerate([(PROMPTS[:2], params()), (PROMPTS[2:4], params(max_tokens=5))]):
        texts, ids, _ = collect([pair[number] for pair in pairs if pair[number]], 2)
        assert ids == [alone(prompt, how) for prompt in prompts]
        assert texts == [bytes(one).decode(errors="replace") for one in ids]
    still_serves(llm)


def test_a_stream_that_is_closed_aborts_its_requests():
    llm = make_llm()
    stream = llm.stream(PROMPTS, params())
    next(stream)
    stream.close()
    assert not llm.has_work
    still_serves(llm)


def test_a_stream_that_is_closed_before_it_began_aborts_its_requests():
    llm = make_llm()
    llm.stream(PROMPTS, params()).close()
    assert not llm.has_work
    still_serves(llm)


def test_a_request_of_a_stream_can_be_aborted():
    llm = make_llm()
    steps_at_most(llm, 20)
    seen = []
    for increment in llm.stream([[1], [2]], params()):
        seen.append(increment)
        if len(seen) == 3:
            llm.abort(seen[0].request_id)
    assert [increment.index for increment in seen] == [0, 1, 0, *[1] * 7]


def test_a_wrong_prompt_is_an_error_of_the_call_and_not_of_the_first_step():
    llm = make_llm()
    with pytest.raises(RequestError, match="the prompt is empty"):
        llm.stream([[1], []])
    still_serves(llm)


# Step by step


def run(llm):
    """Tokens and texts by id, and how each ended."""
    texts, ids, reasons = {}, {}, {}
    while llm.has_work:
        for increment in llm.step():
            assert increment.index == -1
            one = increment.request_id
            assert reasons.get(one) is None
            texts[one] = texts.get(one, "") + increment.text
            ids[one] = ids.get(one, []) + increment.token_ids
            reasons[one] = increment.finish_reason
    return texts, ids, reasons


def test_requests_are_served_step_by_step():
    llm = make_llm()
    llm.add_request("Hello", params(), request_id="text")
    number = llm.add_request([1, 2], params(max_tokens=2))
    texts, ids, reasons = run(llm)
    assert ids == {"text": alone(list(b"Hello"), params()), number: alone([1, 2], params(max_tokens=2))}
    assert texts == {one: bytes(values).decode(errors="replace") for one, values in ids.items()}
    assert set(reasons.values()) == {FinishReason.LENGTH}
    still_serves(llm)


def test_a_step_with_nothing_to_do_does_nothing():
    llm = make_llm()
    assert llm.step() == []
    assert llm.core.stats.steps == 0


def test_after_an_abort_no_increment_follows():
    llm = make_llm()
    one, two = llm.add_request([1], params()), llm.add_request([2], params())
    llm.step()
    llm.abort(one)
    texts, _, _ = run(llm)
    assert texts.keys() == {two}
    still_serves(llm)


def test_a_waiting_request_can_be_aborted():
    llm = make_llm(max_active=1)
    one, two = llm.add_request([1], params()), llm.add_request([2], params())
    llm.step()
    llm.abort(two)
    _, ids, _ = run(llm)
    assert len(ids[one]) == 7
    still_serves(llm)


def test_generate_serves_requests_that_were_added_as_well():
    llm = make_llm()
    added = llm.add_request([1], params(max_tokens=20))
    llm.step()
    outputs = llm.generate(PROMPTS, params())
    assert tokens(outputs) == [alone(prompt, params()) for prompt in PROMPTS]
    [increment, *_] = llm.step()
    assert (increment.request_id, len(increment.token_ids)) == (added, 9)
    _, ids, _ = run(llm)
    assert increment.token_ids + ids[added] == alone([1], params(max_tokens=20))[1:]
    still_serves(llm)


def test_what_generate_served_beside_its_own_is_still_told():
    llm = make_llm()
    added = llm.add_request([1], params(max_tokens=2))
    llm.generate([[2]], params())
    _, ids, _ = run(llm)
    assert ids == {added: alone([1], params(max_tokens=2))}


def test_numbers_given_by_the_engine_avoid_ids_given_by_callers():
    llm = make_llm()
    llm.add_request([1], params(), request_id="2")
    assert tokens(llm.generate([[2], [3], [4]], params())) == [alone([i], params()) for i in (2, 3, 4)]
    _, ids, _ = run(llm)
    assert len(ids["2"]) == 8


def test_steps_and_their_tokens_are_counted():
    llm = make_llm(max_num_batched_tokens=4)
    llm.generate([[1, 2, 3], [4, 5, 6]], params(max_tokens=3))
    stats = llm.core.stats
    assert (stats.steps, stats.prefills, stats.prefill_tokens, stats.decodes, stats.decode_tokens) == (4, 2, 6, 3, 4)
    assert stats.prefill_seconds > 0 < stats.decode_seconds


@pytest.mark.parametrize("first", [False, True])
def test_decode_first_also_decodes_first(first):
    llm = make_llm(decode_first=first)
    llm.add_request([1], params(), "decodes")
    llm.step()
    llm.add_request([2], params(), "is prefilled")
    served = [seq.request_id for seq in llm.core.step()]
    assert served == (["decodes", "is prefilled"] if first else ["is prefilled", "decodes"])


# Forks


def test_a_fork_goes_on_from_where_its_parent_stands():
    llm = make_llm()
    parent = llm.add_request([1, 2, 3], params())
    told = [token for _ in range(3) for increment in llm.step() for token in increment.token_ids]
    child = llm.fork(parent, params(max_tokens=10), "child")
    _, ids, _ = run(llm)
    wanted = alone([1, 2, 3], params(max_tokens=10))
    assert told + ids[parent] == wanted[:8]
    assert (child, ids[child]) == ("child", wanted[3:])
    still_serves(llm)


def test_forks_with_other_seeds_go_other_ways():
    llm = make_llm()
    parent = llm.add_request([1, 2, 3], params())
    llm.step()
    forks = [llm.fork(parent, params(temperature=1.0, seed=seed)) for seed in range(5)]
    _, ids, _ = run(llm)
    assert len({tuple(ids[fork]) for fork in forks}) > 3
    assert ids[parent] == alone([1, 2, 3], params())[1:]
    still_serves(llm)


class TwoForOne:
    """Every two tokens are a character."""

    def decode(self, ids):
        whole = [chr(0x4E00 + 256 * one + two) for one, two in zip(ids[::2], ids[1::2], strict=False)]
        return "".join(whole) + "\N{REPLACEMENT CHARACTER}" * (len(ids) % 2)


def test_a_fork_inside_a_character_does_not_split_it():
    llm = make_llm(tokenizer=TwoForOne())
    parent = llm.add_request([1], params())
    [first, second, third] = [llm.step()[0] for _ in range(3)]
    fork = llm.fork(parent, params())
    texts, ids, _ = run(llm)
    before = first.token_ids + second.token_ids + third.token_ids
    assert second.text + texts[fork] == TwoForOne().decode(before + ids[fork])


@pytest.mark.parametrize(
    ("forked", "how", "said"),
    [
        ("nobody", params(), "there is no request 'nobody' under way"),
        ("waiting", params(), "request 'waiting' has no token yet; fork it once it has"),
        ("parent", params(max_tokens=2), "request 'parent' has 2 tokens already; raise max_tokens"),
        ("parent", params(max_tokens=300), "need 64 cache blocks, but there are 40"),
    ],
)
def test_a_fork_that_cannot_be_is_one_clear_error(forked, how, said):
    llm = make_llm(max_active=1, num_blocks=40, max_model_len=256)
    llm.add_request([1], params(), request_id="parent")
    llm.add_request([1], params(), request_id="waiting")
    llm.step(), llm.step()
    with pytest.raises(RequestError, match=said):
        llm.fork(forked, how)
    with pytest.raises(RequestError, match="a request with the id 'waiting' is under way; choose another"):
        llm.fork("parent", params(), "waiting")
    _, ids, _ = run(llm)
    assert len(ids["parent"]) == 6
    still_serves(llm)


# Wrong requests

LONG = list(range(64))


@pytest.mark.parametrize(
    ("prompt", "how", "said"),
    [
        ([], {}, "the prompt is empty; give at least one token"),
        ("", {}, "the prompt is empty; give at least one token"),
        ([1, 256], {}, "the prompt holds the token id 256, but the model's ids go from 0 to 255"),
        ([1, -1], {}, "the prompt holds the token id -1"),
        (LONG, {}, "the prompt has 64 tokens, which leaves no room for a new one in a context of 64"),
        (
            LONG[:30],
            {"max_tokens": 12},
            "30 tokens of prompt and 12 new ones need 11 cache blocks, but there are 10; lower max_tokens or raise",
        ),
        (LONG[:50], {"max_tokens": 1}, "50 tokens of prompt and 1 new ones need 13 cache blocks"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_request_that_cannot_be_served_is_one_clear_error(prompt, how, said):
    llm = make_llm(num_blocks=10)
    attempts = {
        llm.generate: ([prompt], params(**how)),
        llm.stream: ([[1], prompt], params(**how)),
        llm.add_request: (prompt, params(**how)),
    }
    for attempt, arguments in attempts.items():
        with pytest.raises(RequestError, match=said):
            attempt(*arguments)
        assert not llm.has_work
    still_serves(llm)


def test_the_largest_request_that_fits_is_served():
    llm = make_llm(num_blocks=10)
    assert tokens(llm.generate(LONG[:30], params(max_tokens=11))) == [alone(LONG[:30], params(max_tokens=11))]
    still_serves(llm)


def test_of_several_the_wrong_one_is_named_and_none_has_been_begun():
    llm = make_llm()
    with pytest.raises(RequestError, match="prompt 2: the prompt is empty"):
        llm.generate([[1], [2], []], params())
    assert not llm.has_work
    still_serves(llm)


def test_parameters_must_be_as_many_as_prompts():
    llm = make_llm()
    with pytest.raises(RequestError, match="there are 2 prompts, but sampling_params for 3"):
        llm.generate([[1], [2]], [params()] * 3)
    still_serves(llm)


def test_an_id_is_free_when_its_request_has_ended():
    llm = make_llm()
    llm.add_request([1], params(), "mine")
    with pytest.raises(RequestError, match="a request with the id 'mine' is under way; choose another"):
        llm.add_request([2], params(), "mine")
    run(llm)
    llm.add_request([2], params(), "mine")
    assert run(llm)[1] == {"mine": alone([2], params())}
    still_serves(llm)


def test_what_is_not_under_way_cannot_be_aborted():
    llm = make_llm()
    ended = llm.add_request([1], params())
    run(llm)
    for request_id in (ended, "nobody"):
        with pytest.raises(RequestError, match=f"there is no request '{request_id}' under way"):
            llm.abort(request_id)
    still_serves(llm)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, but is 0"),
        ({"max_tokens": 1.5}, "max_tokens must be an integer, but is 1.5"),
        ({"max_tokens": True}, "max_tokens must be an integer, but is True"),
        ({"temperature": -0.1}, "temperature must be 0 .greedy. or .*, but is -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 .greedy. or .*, but is nan"),
        ({"temperature": float("inf")}, "temperature must be 0 .greedy. or .*, but is inf"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*63 - 1, but is -1"),
        ({"seed": 2**63}, r"seed must be from 0 to 2\*\*63 - 1, but is"),
        ({"stop_token_ids": ["a"]}, "a stop token id must be an integer, but is 'a'"),
    ],
    ids=str,
)
def test_wrong_parameters_are_one_clear_error(values, said):
    with pytest.raises(RequestError, match=said):
        SamplingParams(**values)


def test_half_a_surrogate_pair_is_no_text():
    llm = make_llm()
    with pytest.raises(RequestError, match=r"the prompt '\\ud800' is not text: it has half"):
        llm.generate("\ud800", params())
    still_serves(llm)


@pytest.mark.parametrize("prompt", [[1.5, 2.0], [["a", "b"]], [[1.5]], [None], 5], ids=repr)
def test_a_prompt_of_another_kind_is_one_clear_error(prompt):
    with pytest.raises(RequestError):
        make_llm().generate(prompt, params())


@pytest.mark.parametrize(
    "values",
    [{"temperature": "hot"}, {"seed": 1.5}, {"seed": "a"}, {"stop_token_ids": 5}, {"temperature": 1e300}],
    ids=str,
)
def test_parameters_of_another_kind_are_one_clear_error(values):
    with pytest.raises(RequestError):
        make_llm().generate([1], SamplingParams(**values))


# Interruptions


@pytest.mark.parametrize("error", [Interrupted, RuntimeError])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("steps", [0, 1, 4], ids=["prefill", "first_decode", "decode"])
@pytest.mark.parametrize("options", [{}, {"block_size": 2, "num_blocks": 14}], ids=["room", "preemptions"])
def test_after_an_interruption_the_engine_is_usable(options, steps, layer, error):
    llm = make_llm(**options)
    model = model_of(llm.core)
    model.interrupt_with = error
    countdown = iter(range(steps - 1, -1, -1))

    def interrupt_soon(_):
        if next(countdown, None) == 0:
            model.interrupt_in = layer

    if steps == 0:
        model.interrupt_in = layer
    with pytest.raises(error):
        llm.generate(PROMPTS, params(), on_step=interrupt_soon)
    assert not llm.has_work
    still_serves(llm)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("steps", [0, 2])
def test_requests_that_were_added_outlive_an_interruption(steps, layer):
    llm = make_llm(block_size=2)
    ids = {llm.add_request(prompt, params()): [] for prompt in PROMPTS}
    for _ in range(steps):
        for increment in llm.step():
            ids[increment.request_id] += increment.token_ids
    model_of(llm.core).interrupt_in = layer
    with pytest.raises(Interrupted):
        llm.step()
    llm.core.check_integrity()
    rest = run(llm)[1]
    assert [ids[i] + rest[i] for i in ids] == [alone(prompt, params()) for prompt in PROMPTS]
    still_serves(llm)


@pytest.mark.parametrize("where", ["copy", 0, 1])
def test_an_interruption_at_a_copy_of_a_shared_block_does_no_harm(where):
    llm = make_llm(block_size=4)
    parent = llm.add_request([1, 2, 3, 4, 5], params())
    llm.step()
    child = llm.fork(parent, params(temperature=1.0, seed=9))
    model_of(llm.core).interrupt_in = None if where == "copy" else where
    llm.core.runner._machine.ops.interrupt_copy = where == "copy"
    with pytest.raises(Interrupted):
        llm.step()
    llm.core.check_integrity()
    assert not llm.core.blocks._copies
    first = alone([1, 2, 3, 4, 5], params())
    _, ids, _ = run(llm)
    assert [first[0], *ids[parent]] == first
    assert len(ids[child]) == 7
    still_serves(llm)


def lines_of_steps(llm, interrupted):
    """Count the lines that the engine's bookkeeping runs in steps, and raise an interruption at one of them."""
    count, step = 0, llm.core.step

    def trace(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.endswith(("core.py", "scheduler.py", "block_manager.py", "block_tables.py")):
            return None
        count += event == "line"
        if count == interrupted and event == "line":
            sys.settrace(None)
            raise Interrupted
        return trace

    def traced():
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            return step()
        finally:
            sys.settrace(before)

    llm.core.step = traced
    try:
        llm.generate(PROMPTS, params())
    finally:
        llm.core.step = step
    return count


def test_an_interruption_anywhere_in_a_step_does_no_harm():
    def engine():
        llm = make_llm(block_size=2, num_blocks=14, max_num_batched_tokens=8)
        llm.generate([1, 2, 3, 4], params(max_tokens=1))
        return llm

    lines = lines_of_steps(engine(), interrupted=None)
    # A prime, so that not always the same lines of loops are met.
    for interrupted in range(1, lines, 53):
        llm = engine()
        with pytest.raises(Interrupted):
            lines_of_steps(llm, interrupted)
        still_serves(llm)


def test_an_interruption_while_a_cached_prompt_is_written_to_again_does_no_harm():
    llm = make_llm(block_size=2)
    llm.generate([1, 2, 3, 4], params(max_tokens=1))
    model_of(llm.core).interrupt_in = 0
    with pytest.raises(Interrupted):
        llm.generate([1, 2, 3, 4], params())
    assert tokens(llm.generate([1, 2, 3, 4], params())) == [alone([1, 2, 3, 4], params())]


def test_an_error_of_whoever_is_told_of_steps_aborts_the_requests():
    llm = make_llm()

    def fail(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        llm.generate(PROMPTS, params(), on_step=fail)
    assert not llm.has_work
    still_serves(llm)


def test_an_interruption_ends_a_stream_and_its_requests():
    llm = make_llm()
    stream = llm.stream(PROMPTS, params())
    next(stream)
    model_of(llm.core).interrupt_in = 1
    with pytest.raises(Interrupted):
        list(stream)
    assert not llm.has_work
    still_serves(llm)


# How many may be under way


def test_more_than_may_be_under_way_are_refused():
    llm = make_llm(max_inflight=3)
    llm.add_request([1], params())
    llm.add_request([2], params(temperature=1.0, n=2))
    full = "3 sequences wait or run, and max_inflight=3 leaves no room for 1 more; try again when some have ended"
    with pytest.raises(RequestError, match=full):
        llm.add_request([3], params())
    with pytest.raises(RequestError, match="leaves no room for 1 more"):
        llm.generate(PROMPTS, params())
    run(llm)
    assert tokens(llm.generate(PROMPTS[:3], params())) == [alone(prompt, params()) for prompt in PROMPTS[:3]]
    with pytest.raises(RequestError, match="3 sequences wait or run"):
        llm.generate(PROMPTS, params())
    assert not llm.has_work


def test_packing_gives_the_tokens_of_first_come_first_served():
    llm = make_llm(admission="pack", admission_force_fifo=2, max_num_batched_tokens=6, max_active=3)
    assert tokens(llm.generate(PROMPTS * 3, params())) == [alone(prompt, params()) for prompt in PROMPTS * 3]
