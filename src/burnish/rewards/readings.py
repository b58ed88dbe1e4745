"""What is asked about an image, and what number the answer comes to."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from burnish.rewards.learned.similarity import BERTScore, Sentences
from burnish.serving.answers import Answer, Missing

_GAP = re.compile(r"\{(\w*)\}")
_NUMBER = re.compile(r"([+-]?[0-9]+(?:\.[0-9]+)?)(?:\s*/\s*([0-9]+(?:\.[0-9]+)?))?\.?")
LIKELIEST = 20
"""First tokens whose probability is asked for: the most that OpenAI's API, and vLLM by default, gives."""
_SPACES = "▁Ġ"
"""What stands for a space in tokens that a server shows as its vocabulary has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSimilarity:
    """How much the answer is like what the prompt asks for (Black et al. 2023, sec. 5.2)."""

    version: ClassVar[int] = 1

    question: str = "Answer concisely: what is going on in this image?"
    """{prompt} stands for the sample's prompt, which the question of the authors' code does not give away."""
    expected: str = "The image contains {prompt}"
    """What the answer is compared with; {prompt} stands for the sample's prompt. As in the authors' code."""
    measure: Sentences | BERTScore = field(default_factory=Sentences)
    """How alike two texts are; recall of BERTScore in the paper."""
    max_tokens: int = 64
    """Of the answer; one that is cut there is compared as it is."""

    def __post_init__(self) -> None:
        _check_text("question", self.question, "prompt")
        _check_text("expected", self.expected, "prompt")
        _check_tokens(self.max_tokens)

    @property
    def wanted(self) -> Mapping[str, Any]:
        """Fields of the request."""
        return {"max_tokens": self.max_tokens}

    def prepare(self) -> None:
        """Load what is measured with. Raises ValueError."""
        self.measure.prepare()

    def ask(self, prompt: str) -> str:
        return _filled(self.question, prompt=prompt)

    def read(self, answers: Sequence[Answer], prompts: Sequence[str]) -> list[float | Missing]:
        """The similarity of each answer; an empty one has none."""
        expected = [_filled(self.expected, prompt=prompt) for prompt in prompts]
        said = [place for place, answer in enumerate(answers) if answer.text.strip()]
        values = self.measure(
            [answers[place].text.strip() for place in said], [expected[place] for place in said]
        )
        read = dict(zip(said, values, strict=True))
        empty = Missing("the answer is empty")
        return [read.get(place, empty) for place in range(len(answers))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """The number that the model answers.

    The answer must be that number and nothing else, but for white space, a full stop, and "/ highest".
    """

    version: ClassVar[int] = 1

    question: str = (
        "How well does this image show what this text describes? Text: {prompt}. Answer with one number "
        "alone, from {lowest} (not at all) to {highest} (entirely)."
    )
    """{prompt}, {lowest} and {highest} stand for what they say."""
    lowest: float = 0.0
    highest: float = 10.0
    """A number outside of the range is no grade."""
    max_tokens: int = 16
    """Of the answer; one that is cut there is no grade: the number may go on."""

    def __post_init__(self) -> None:
        _check_text("question", self.question, "prompt", "lowest", "highest")
        _check_tokens(self.max_tokens)
        if not -math.inf < self.lowest < self.highest < math.inf:
            raise ValueError(
                f"lowest = {self.lowest} and highest = {self.highest}, expected lowest < highest"
            )

    @property
    def wanted(self) -> Mapping[str, Any]:
        """Fields of the request."""
        return {"max_tokens": self.max_tokens}

    def prepare(self) -> None:
        """There is nothing to be had."""

    def ask(self, prompt: str) -> str:
        bounds = {"lowest": f"{self.lowest:g}", "highest": f"{self.highest:g}"}
        return _filled(self.question, prompt=prompt, **bounds)

    def read(self, answers: Sequence[Answer], prompts: Sequence[str]) -> list[float | Missing]:
        del prompts
        return [self._read(answer) for answer in answers]

    def _read(self, answer: Answer) -> float | Missing:
        said = f"the answer {reprlib.repr(answer.text)}"
        if answer.cut:
            return Missing(
                f"{said} is cut after {self.max_tokens} tokens; raise reading.max_tokens"
            )
        found = _NUMBER.fullmatch(answer.text.strip())
        if found is None or (found[2] is not None and float(found[2]) != self.highest):
            return Missing(f"{said} is not one number")
        value = float(found[1])
        if not self.lowest <= value <= self.highest:
            return Missing(f"{said} is not from {self.lowest:g} to {self.highest:g}")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class YesNo:
    """The probability of yes against no as the answer's first token: p(yes) / (p(yes) + p(no)), in [0, 1].

    Tokens are taken together that differ by capitals and white space. The server must give log-probabilities.
    Of the word that is not among the likeliest 20 the probability is taken for 0.
    (VQAScore, Lin et al. 2024, has p(yes) alone.)
    """

    version: ClassVar[int] = 1

    question: str = 'Does this image show "{prompt}"? Answer with yes or no.'
    """{prompt} stands for the sample's prompt."""
    yes: str = "yes"
    no: str = "no"
    """The words, each of which must be one token of the model's."""
    least: float = 0.5
    """What the two must have of all probability; with less the model has answered something else."""

    def __post_init__(self) -> None:
        _check_text("question", self.question, "prompt")
        if not 0 < self.least <= 1:
            raise ValueError(f"least = {self.least}, expected more than 0 and at most 1")
        if not _plain(self.yes) or not _plain(self.no) or _plain(self.yes) == _plain(self.no):
            raise ValueError(f"yes = {self.yes!r} and no = {self.no!r}, expected two words")

    @property
    def wanted(self) -> Mapping[str, Any]:
        """Fields of the request."""
        return {"max_tokens": 1, "logprobs": True, "top_logprobs": LIKELIEST}

    def prepare(self) -> None:
        """There is nothing to be had."""

    def ask(self, prompt: str) -> str:
        return _filled(self.question, prompt=prompt)

    def read(self, answers: Sequence[Answer], prompts: Sequence[str]) -> list[float | Missing]:
        del prompts
        return [self._read(answer) for answer in answers]

    def _read(self, answer: Answer) -> float | Missing:
        if answer.first is None:
            return Missing(
                "the answer has no log-probabilities: the server, or this model on it, gives none; take "
                "reading.name = 'grade'"
            )
        yes, no = (
            sum(math.exp(value) for token, value in answer.first.items() if _plain(token) == word)
            for word in (_plain(self.yes), _plain(self.no))
        )
        if yes + no < self.least:
            return Missing(
                f"the answer begins with {reprlib.repr(answer.text)}: {self.yes!r} and {self.no!r} have "
                f"{yes + no:.3g} of all probability, expected at least {self.least:g}"
            )
        return yes / (yes + no)


def _plain(token: str) -> str:
    return token.strip().lstrip(_SPACES).strip().casefold()


def _filled(text: str, **words: str) -> str:
    """The text with what its gaps stand for; what comes in has no gaps, whatever it looks like."""
    return _GAP.sub(lambda gap: words[gap[1]], text)


def _check_text(key: str, text: str, *known: str) -> None:
    if not text.strip():
        raise ValueError(f"{key} is empty")
    for name in _GAP.findall(text):
        if name not in known:
            gaps = ", ".join(f"{{{each}}}" for each in known)
            raise ValueError(f"{key}: {{{name}}} stands for nothing, expected {gaps}")


def _check_tokens(max_tokens: int) -> None:
    if max_tokens < 1:
        raise ValueError(f"max_tokens = {max_tokens}, expected at least 1")
