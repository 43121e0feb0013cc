"""The text of one request as its tokens come, up to a text that ends it."""

from engine.sequence import Sequence
from engine.tokenizer import Detokenizer, Tokenizer


class StopTexts:
    """Finds the first of several texts in one that comes in pieces, and holds back what may be the beginning of one.

    What is found does not depend on where pieces end: it is the text that would be complete first if characters came
    one by one, and of several that are complete at once the longest.

    Args:
        stops: What is looked for; none is empty.
        include: Whether the text that was found is given too.
    """

    def __init__(self, stops: tuple[str, ...], *, include: bool = False) -> None:
        self._stops = stops
        self._include = include
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """What can be given now. Once something has been found nothing is any more."""
        if self.found is not None:
            return ""
        text = self._held + piece
        places = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if places:
            end, start, self.found = min(places)
            self._held = ""
            return text[: end if self._include else start]
        most = max((len(stop) for stop in self._stops), default=1) - 1
        first = max(0, len(text) - most)
        starts = (i for i in range(first, len(text)) if any(stop.startswith(text[i:]) for stop in self._stops))
        self._held = text[next(starts, len(text)) :]
        return text[: len(text) - len(self._held)]

    def flush(self) -> str:
        """What is held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held


class OutputText:
    """The text of a request; `read` has it look at tokens that have come.

    Args:
        seq: The request. With stop texts it is watched: the token that completes one is its last.
        tokenizer: What makes text of its tokens.
    """

    def __init__(self, seq: Sequence, tokenizer: Tokenizer) -> None:
        self._seq = seq
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopTexts(seq.params.stop_texts, include=seq.params.include_stop)
        self._num_read = 0
        self._pieces: list[str] = []
        self._num_given = 0
        if seq.params.stop_texts:
            seq.watch = self.read

    def read(self) -> bool:
        """Whether tokens that have come hold a text that ends the request."""
        output = self._seq.tokens[self._seq.num_prompt + self._num_read :]
        self._num_read += len(output)
        for token in output:
            self._pieces.append(self._stops.push(self._detokenizer.push(token)))
        return self._stops.found is not None

    def take(self) -> str:
        """Text that has not been taken, all of it when the request has ended."""
        self.read()
        if self._seq.finish_reason is not None:
            self._pieces.append(self._stops.push(self._detokenizer.flush()) + self._stops.flush())
        text = "".join(self._pieces[self._num_given :])
        self._num_given = len(self._pieces)
        return text

    @property
    def whole(self) -> str:
        """Everything that has been read."""
        self.take()
        return "".join(self._pieces)
