"""How well an image shows the text that it should."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from burnish.images import to_pil
from burnish.rewards import extras

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.rollout import Samples

MODELS = ("models/PP-OCRv6_det_small.onnx", "models/PP-OCRv6_rec_small.onnx")
"""What finds lines of text, and what reads one: files of the package rapidocr."""
QUOTED = re.compile(r'"([^"]*)"|\u201c([^\u201d]*)\u201d')
"""Between straight double quotes, or between an opening and a closing typographic one."""

Box = Sequence[Sequence[float]]
"""Of a line: its corners (x, y) in pixels, y downwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRendering:
    """1 - D(read, asked) / max(|read|, |asked|), in [0, 1]: 1 is the text that was asked for and no other.

    D is the edit distance (Levenshtein 1966) and |.| counts characters: the `1-N.E.D.` of text recognition
    (Zhang et al. 2019, *ICDAR 2019 Robust Reading Challenge on Reading Chinese Text on Signboard*).

    Read is what an OCR (RapidOCR with PP-OCRv6's small models) finds in the image: its lines row by row from
    the top, in a row from the left, joined by spaces. A line is in the row of a higher one if its middle is
    above that one's lower edge. Text that is upside down may be read as well.

    Asked for is the sample's metadata `text`, or else what its prompt has in double quotes; several quoted
    parts are joined by spaces. A sample with neither is an error.

    Both are normalised by Unicode's NFKC, and as the settings say. No gradient.
    """

    differentiable: ClassVar[bool] = False
    version: ClassVar[int] = 1

    match_case: bool = False
    """Whether an `a` instead of an `A` is an error."""
    match_spaces: bool = False
    """Whether spaces count. If they do, any white space is one space, and none at the ends; if not, there
    are none: whether an OCR sees one is often chance."""
    side: int = 736
    """Pixels to which the shorter side of a smaller image is enlarged before text is looked for; 736 is
    RapidOCR's. Less is faster, and enough for text that is large in the image."""
    confidence: float = 0.5
    """Lines that were read with less, in [0, 1], are left out; 0.5 is RapidOCR's."""

    def __post_init__(self) -> None:
        if self.side < 32:
            raise ValueError(f"side = {self.side}, expected at least 32")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence = {self.confidence}, expected 0 to 1")

    def prepare(self) -> None:
        """Load the OCR. Raises ValueError if it is not installed."""
        self._reader()

    def content(self) -> str:
        """Of the OCR's models, for a cache's key. Raises ValueError if it is not installed."""
        return extras.contents("rapidocr", _models())

    def __call__(self, samples: Samples) -> Tensor:
        wanted = [
            self._normalised(asked, place, samples) for place, asked in enumerate(_asked(samples))
        ]
        read = [self._normal(self._reader().read(image)) for image in samples.media]
        values = [likeness(one, other) for one, other in zip(read, wanted, strict=True)]
        return samples.media.new_tensor(values)

    def _normalised(self, asked: str, place: int, samples: Samples) -> str:
        found = self._normal(asked)
        if not found:
            raise _fault(samples, place, f"asks for the text {asked!r}, which is empty")
        return found

    def _normal(self, text: str) -> str:
        text = unicodedata.normalize("NFKC", text)
        text = text if self.match_case else text.casefold()
        return (" " if self.match_spaces else "").join(text.split())

    def _reader(self) -> Reader:
        return _reader(self.side, self.confidence)


@dataclass(frozen=True, slots=True)
class Reader:
    """engine: RapidOCR, which finds and reads lines"""

    engine: Any

    def read(self, image: Tensor) -> str:
        """The text in an image (3, height, width), float in [0, 1]; '' if there is none."""
        found = self.engine(to_pil(image))
        if found.txts is None:
            return ""
        return " ".join(found.txts[i] for i in reading_order(found.boxes.tolist()))


def likeness(read: str, asked: str) -> float:
    """1 - D / max(|read|, |asked|), where they are not both empty."""
    return 1 - edit_distance(read, asked) / max(len(read), len(asked))


def edit_distance(one: str, other: str) -> int:
    """Fewest characters to insert, delete or replace that turn one into the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, row = row, [i]
        for j, b in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
    return row[-1]


def reading_order(boxes: Sequence[Box]) -> list[int]:
    """Places of the boxes, row by row from the top, in a row from the left."""
    top, bottom = ([pick(y for _, y in box) for box in boxes] for pick in (min, max))
    left = [min(x for x, _ in box) for box in boxes]
    middle = [(a + b) / 2 for a, b in zip(top, bottom, strict=True)]
    rows: list[list[int]] = []
    for place in sorted(range(len(boxes)), key=lambda i: middle[i]):
        if rows and middle[place] < bottom[rows[-1][0]]:
            rows[-1].append(place)
        else:
            rows.append([place])
    return [place for row in rows for place in sorted(row, key=lambda i: left[i])]


def quoted(prompt: str) -> str | None:
    """What the prompt has in double quotes, its parts joined by spaces; None if it has none."""
    parts = [one or other for one, other in QUOTED.findall(prompt)]
    return " ".join(parts) if parts else None


def _asked(samples: Samples) -> list[str]:
    """The text that each sample asks for. Raises RewardError that names one which asks for none."""
    found = []
    for place, (prompt, known) in enumerate(zip(samples.prompts, samples.metadata, strict=True)):
        text = _known(known, place, samples) if "text" in known else quoted(prompt)
        if text is None:
            raise _fault(
                samples,
                place,
                "asks for no text: expected a text in its metadata under 'text', or in double quotes in its "
                "prompt",
            )
        found.append(text)
    return found


def _known(metadata: Mapping[str, Any], place: int, samples: Samples) -> str:
    text = metadata["text"]
    if not isinstance(text, str):
        raise _fault(samples, place, f"has the metadata text = {text!r}, expected a text")
    return text


def _fault(samples: Samples, place: int, told: str) -> ValueError:
    from burnish.reward import RewardError  # here, since it loads torch

    return RewardError(
        f"reward 'TextRendering': sample {place} (prompt: {samples.prompts[place]!r}) {told}"
    )


@cache
def _reader(side: int, confidence: float) -> Reader:
    find, read = _models()
    extras.needed("onnxruntime", "ocr")  # RapidOCR would miss it at the first image only
    settings = {
        "Global.log_level": "critical",  # an image without text is no event
        "Global.text_score": confidence,
        "Global.use_cls": False,
        "Det.model_path": find,
        "Det.limit_side_len": side,
        "Rec.model_path": read,
    }
    return Reader(extras.needed("rapidocr", "ocr").RapidOCR(params=settings))


def _models() -> tuple[str, ...]:
    return tuple(extras.shipped(extras.needed("rapidocr", "ocr"), MODELS))
