"""The engine as a library: text or token ids in, text and token ids out."""

import dataclasses
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import RequestError
from engine.loading import find_model, load_core
from engine.output_text import OutputText
from engine.sampling_params import SamplingParams
from engine.sequence import FinishReason, Sequence, TokenLogprob
from engine.timing import Timing
from engine.tokenizer import Tokenizer, load_tokenizer

Prompt = str | Many[int]


@dataclass(frozen=True)
class Output:
    """What became of a request.

    Attributes:
        text: The generated text; empty where it was not asked for.
        token_ids: The generated tokens, a stop token included.
        num_cached_prompt: Tokens of the prompt that were in the prefix cache.
        timing: When it arrived, was admitted, got its tokens, and ended.
        logprobs: Of each generated token, where the request asked for them.
        sample: Which of the prompt's outputs it is.
        error: Why the request could not go on, where `finish_reason` is `error`.
    """

    request_id: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    num_cached_prompt: int
    num_preemptions: int
    timing: Timing
    logprobs: list[TokenLogprob] | None = None
    error: str | None = None
    sample: int = 0


@dataclass(frozen=True)
class Increment:
    """What a step added to a request's output.

    Attributes:
        index: Of the request's prompt among those that `stream` was given; -1 for `add_request`.
        text: Text that is now complete, often none; all of a request's texts together are its output's.
        token_ids: The step's tokens; none where the request ends with an error.
        finish_reason: In the last increment of a request.
        sample: Which of the prompt's outputs it belongs to.
        logprobs: Of the tokens, where the request asked for them.
    """

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    sample: int = 0
    logprobs: list[TokenLogprob] | None = None


OnIncrement = Callable[[Increment], object]


class _Followed:
    """A sequence under way, and how much of it its caller has seen.

    Args:
        seq: The sequence.
        index: Of its prompt; `sample` is which of the prompt's outputs it is.
        sample: See `index`.
        tokenizer: For its text.
        on_increment: Told what comes; what it raises ends this sequence alone.
    """

    def __init__(
        self, seq: Sequence, index: int, sample: int, tokenizer: Tokenizer, on_increment: OnIncrement | None = None
    ) -> None:
        self.seq = seq
        self.sample = sample
        self.text = OutputText(seq, tokenizer)
        self._index = index
        self._seen = len(seq.tokens)
        self._told_end = False
        self._on_increment = on_increment
        # A fork may begin inside a character.
        self.text.take()

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to tell."""
        seq = self.seq
        left = self._seen < len(seq.tokens) or (seq.finish_reason == FinishReason.ERROR and not self._told_end)
        return seq.finish_reason is not None and not left

    def increments(self, core: EngineCore) -> Iterator[Increment]:
        """What has come since the last call, if anything."""
        while (increment := self._next()) is not None:
            if self._on_increment is not None:
                try:
                    self._on_increment(increment)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's alone
                    self._on_increment = None
                    core.fail(self.seq, f"on_increment raised {type(error).__name__}: {error}")
                    increment = self._as_last(increment)
            yield increment

    def _as_last(self, increment: Increment) -> Increment:
        """The same, now that the request has ended with it."""
        self._told_end = True
        return dataclasses.replace(
            increment, text=increment.text + self.text.take(), finish_reason=self.seq.finish_reason
        )

    def _next(self) -> Increment | None:
        seq = self.seq
        new = seq.tokens[self._seen :]
        failed = seq.finish_reason == FinishReason.ERROR and not self._told_end
        if not new and not failed:
            return None
        self._told_end = failed
        logprobs = None
        if seq.params.logprobs is not None:
            logprobs = seq.logprobs[len(seq.logprobs) - (len(seq.tokens) - self._seen) :] if new else []
        self._seen += len(new)
        return Increment(seq.request_id, self._index, self.text.take(), new, seq.finish_reason, self.sample, logprobs)


class Stream(Iterator[Increment]):
    """What steps add to several requests, as it comes; the engine steps when more is asked for.

    Requests that are still under way when it is closed, or when nobody holds it any more, are aborted.
    """

    def __init__(self, core: EngineCore, requests: list[_Followed]) -> None:
        self._core = core
        self._requests = requests
        self._ready: deque[Increment] = deque()

    def __next__(self) -> Increment:
        # Steps of other calls may have served these requests too.
        while not self._collect():
            self._requests = [request for request in self._requests if not request.ended]
            if not self._requests:
                raise StopIteration
            try:
                self._core.step()
            except BaseException:
                self.close()
                raise
        return self._ready.popleft()

    def _collect(self) -> bool:
        """Whether there is an increment to give."""
        if not self._ready:
            self._ready.extend(one for request in self._requests for one in request.increments(self._core))
        return bool(self._ready)

    def close(self) -> None:
        """Abort what is under way; nothing more comes."""
        _abort_all(self._core, [request.seq for request in self._requests])
        self._requests = []
        self._ready.clear()

    def __del__(self) -> None:
        self.close()


class LLM:
    """A model, ready to generate.

    Args:
        model: A checkpoint's folder or hub id, or with `load_format="dummy"` a preset or a folder with a config.
        progress: Told in a few words what takes time while loading.
        options: See `EngineConfig`.

    Raises:
        ConfigError: There is no such option, or options do not fit each other, the model or the machine.
        ModelError: The model cannot be found, read or run.
    """

    def __init__(self, model: str, *, progress: Callable[[str], None] | None = None, **options: Any) -> None:
        self.config = EngineConfig.from_options(**options)
        found = find_model(model, self.config.load_format, hf=self.config.attention_backend == "hf")
        self.tokenizer = load_tokenizer(self.config.tokenizer, found.folder, found.spec.vocab_size)
        self.core = load_core(found, self.config, progress)
        self._followed: list[_Followed] = []

    @property
    def max_model_len(self) -> int:
        """Tokens of a request at most, prompt and output together."""
        return self.core.runner.max_model_len

    def generate(
        self,
        prompts: Prompt | Many[Prompt],
        sampling_params: SamplingParams | Many[SamplingParams] | None = None,
        *,
        detokenize: bool = True,
        on_step: Callable[[int], None] | None = None,
        on_increment: OnIncrement | None = None,
    ) -> list[Output]:
        """Serve prompts to their end.

        Args:
            prompts: Texts or lists of token ids; one of them, or several.
            sampling_params: For all, or one for each.
            detokenize: Whether texts are wanted.
            on_step: Told after each step how many of the requests have ended. What it raises ends this call.
            on_increment: Told what steps add; what it raises ends the request that it was told of, alone.

        Returns:
            An output for each prompt, in their order; with `n` over 1, as many side by side.

        Raises:
            RequestError: One of them cannot be served; then none has been begun.
        """
        requests = self._add_all(prompts, sampling_params, on_increment)
        seqs = [request.seq for request in requests]
        try:
            while self.core.has_work and any(seq.finish_reason is None for seq in seqs):
                self.core.step()
                if on_increment is not None:
                    for request in requests:
                        deque(request.increments(self.core), maxlen=0)
                if on_step is not None:
                    on_step(sum(seq.finish_reason is not None for seq in seqs))
        finally:
            _abort_all(self.core, seqs)
        return [self._output(request, detokenize=detokenize) for request in requests]

    def stream(
        self, prompts: Prompt | Many[Prompt], sampling_params: SamplingParams | Many[SamplingParams] | None = None
    ) -> Stream:
        """Serve prompts, and give what each step adds; arguments and errors as `generate` has them."""
        return Stream(self.core, self._add_all(prompts, sampling_params))

    def add_request(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        on_increment: OnIncrement | None = None,
    ) -> str:
        """Queue a request; `step` serves it, and tells `on_increment` of it, which ends it alone if it raises.

        Returns:
            Its id.

        Raises:
            RequestError: It cannot be served, or its id is in use.
        """
        seq = self.core.add(self._encode(prompt), sampling_params or SamplingParams(), request_id)
        self._followed += self._follow(seq, -1, on_increment)
        return seq.request_id

    def _follow(self, seq: Sequence, index: int, on_increment: OnIncrement | None = None) -> list[_Followed]:
        """A request's sequences: as many as it wants outputs."""
        return [
            _Followed(one, index, sample, self.tokenizer, on_increment)
            for sample, one in enumerate((seq, *seq.siblings))
        ]

    def fork(self, request_id: str, sampling_params: SamplingParams, new_id: str | None = None) -> str:
        """Begin a second continuation of a request that has begun; see `EngineCore.fork`."""
        seq = self.core.fork(request_id, sampling_params, new_id)
        self._followed += self._follow(seq, -1)
        return seq.request_id

    def step(self) -> list[Increment]:
        """Run one step; what has come for requests of `add_request` and `fork`, also by steps of other calls."""
        self.core.step()
        increments = [one for request in self._followed for one in request.increments(self.core)]
        self._followed = [request for request in self._followed if not request.ended]
        return increments

    def abort(self, request_id: str) -> None:
        """End a request now; no increment follows.

        Raises:
            RequestError: There is no such request under way.
        """
        seq = self.core.abort(request_id)
        self._followed = [request for request in self._followed if request.seq is not seq]

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended, or `step` has not told all of one that has."""
        return self.core.has_work or bool(self._followed)

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes, so that the next prompts are computed whole."""
        self.core.reset_prefix_cache()

    def _encode(self, prompt: Prompt) -> list[int]:
        try:
            return self.tokenizer.encode(prompt) if isinstance(prompt, str) else [operator.index(i) for i in prompt]
        except TypeError:
            raise RequestError(f"a prompt must be a text or token ids, but is {prompt!r:.60}") from None

    def _add_all(
        self,
        prompts: Prompt | Many[Prompt],
        params: SamplingParams | Many[SamplingParams] | None,
        on_increment: OnIncrement | None = None,
    ) -> list[_Followed]:
        """Queue all, or none and say what is wrong with which."""
        each = _as_prompts(prompts)
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(each)
        if not isinstance(params, Iterable) or not all(isinstance(one, SamplingParams) for one in params):
            raise RequestError(f"sampling_params must be SamplingParams, one or several, but is {params!r:.60}")
        all_params = list(params)
        if len(all_params) != len(each):
            raise RequestError(f"there are {len(each)} prompts, but sampling_params for {len(all_params)}")
        token_ids: list[list[int]] = []
        for i, (prompt, one) in enumerate(zip(each, all_params, strict=True)):
            try:
                token_ids.append(self._encode(prompt))
                self.core.check_request(token_ids[-1], one)
            except RequestError as error:
                raise RequestError(f"prompt {i}: {error}" if len(each) > 1 else str(error)) from None
        requests: list[_Followed] = []
        try:
            for index, (tokens, one) in enumerate(zip(token_ids, all_params, strict=True)):
                requests += self._follow(self.core.add_checked(tokens, one), index, on_increment)
        except BaseException:
            _abort_all(self.core, [request.seq for request in requests])
            raise
        return requests

    def _output(self, request: _Followed, *, detokenize: bool) -> Output:
        seq = request.seq
        assert seq.finish_reason is not None
        text = ""
        if detokenize:
            text = request.text.whole if seq.params.stop_texts else self.tokenizer.decode(seq.output)
        return Output(
            request_id=seq.request_id,
            prompt_token_ids=seq.tokens[: seq.num_prompt],
            token_ids=seq.output,
            text=text,
            finish_reason=seq.finish_reason,
            num_cached_prompt=seq.num_cached_prompt,
            num_preemptions=seq.num_preemptions,
            timing=seq.timing,
            logprobs=None if seq.params.logprobs is None else seq.logprobs,
            error=seq.error,
            sample=request.sample,
        )


def _abort_all(core: EngineCore, seqs: list[Sequence]) -> None:
    """End those that have not ended."""
    for seq in seqs:
        if seq.finish_reason is None:
            core.abort(seq.request_id)


def _as_prompts(prompts: Prompt | Many[Prompt]) -> list[Prompt]:
    """One prompt as a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    try:
        each = list(prompts)
    except TypeError:
        raise RequestError(f"prompts must be texts or lists of token ids, but are {prompts!r:.60}") from None
    if each and all(isinstance(token, Integral) for token in each):
        return [each]  # type: ignore[list-item]
    return each  # type: ignore[return-value]
