"""What a study cannot tell because of how it was laid out, in values and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from invatlas.wording import count_noun

KINDS = ("full", "near", "nested", "single", "together")
ALARMS = KINDS[:2]
VERDICTS = {
    "full": "confounded",
    "near": "nearly confounded",
    "nested": "note: nested",
    "single": "note: seen once",
    "together": "note: only together",
}
MOST_NAMED = 3


@dataclass(frozen=True)
class Match:
    """Values of a biological column, and the values of another they go with.

    Attributes
    ----------
    values, beside
        The values of the one and of the other column; of a scale the span of its numbers.
    cells, beside_cells, shared
        Cells of ``values``, cells of ``beside``, and those that are both; with a scale all are
        the cells that have both.
    explained
        Share of the membership in ``values``, or of the variation of a scale, that the other
        column explains, at most 1.
    """

    values: tuple[str, ...]
    beside: tuple[str, ...]
    cells: int
    beside_cells: int
    shared: int
    explained: float


@dataclass(frozen=True)
class Finding:
    """Something a study cannot tell because of how it was laid out.

    Attributes
    ----------
    kind
        ``full`` and ``near``: a biological and a technical value determine each other, wholly or
        nearly, or one of two columns with the numbers of a scale does the other. ``nested``: each
        biological value has technical values of its own, or each of many technical values has a
        biological number. ``single``: a biological value is seen in one technical value alone,
        beside others. ``together``: a biological value occurs with one value of another
        biological column alone.
    biological, beside
        The two columns.
    matches
        Values that go together, most cells first.
    sentence
        The question that cannot be answered, in words.
    """

    kind: str
    biological: str
    beside: str
    matches: tuple[Match, ...]
    sentence: str

    @property
    def alarm(self) -> bool:
        """Whether an effect cannot be told at all, or hardly; anything else is a note."""
        return self.kind in ALARMS

    @property
    def cells(self) -> int:
        """Cells of the biological values."""
        return sum(match.cells for match in self.matches)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``atlas.json``."""
        matches = [
            {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(match).items()}
            for match in self.matches
        ]
        return {**asdict(self), "matches": matches}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Finding:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is something else.
        """
        matches = tuple(
            Match(
                tuple(map(str, match["values"])),
                tuple(map(str, match["beside"])),
                int(match["cells"]),
                int(match["beside_cells"]),
                int(match["shared"]),
                float(match["explained"]),
            )
            for match in values["matches"]
        )
        sound = all(
            match.values and match.beside and 0 <= match.explained <= 1 for match in matches
        )
        texts = [values[name] for name in ("kind", "biological", "beside", "sentence")]
        told = all(isinstance(text, str) for text in texts)
        if not told or texts[0] not in KINDS or not matches or not sound:
            raise ValueError(f"no finding of confounding is like {dict(values)!r}")
        kind, biological, beside, sentence = texts
        return cls(kind, biological, beside, matches, sentence)


def conclude(kind: str, d: str, e: str, matches: Sequence[Match]) -> Iterator[Finding]:
    """Put matches of one kind, if there are any, in a finding."""
    if matches:
        matches = sorted(matches, key=lambda match: (-match.cells, match.values))
        yield Finding(kind, d, e, tuple(matches), SENTENCES[kind](d, e, matches))


def conclude_scale(
    kind: str,
    d: str,
    e: str,
    matches: Sequence[Match],
    scale: str | None = None,
    *,
    alone: bool = False,
) -> Finding:
    """Put matches of a scale, d or e, with categories in a finding, or one of two scales.

    ``alone`` says that the one match sets the numbers of the scale apart, beside other values.
    """
    matches = sorted(matches, key=lambda match: -match.cells)
    question = _ask(kind, d, f"{e}={matches[0].beside[0]}" if alone else e, matches[0].explained)
    evidence = _say_variation(d, e, matches, scale, alone)
    return Finding(kind, d, e, tuple(matches), f"{question}: {evidence}.")


def tell_finding(finding: Finding) -> dict[str, Any]:
    """Put a finding in one row of plain values, long lists cut."""
    values = "; ".join(
        f"{_list(match.values)} with {_list(match.beside)}"
        for match in finding.matches[:MOST_NAMED]
    )
    return {
        "kind": finding.kind,
        "alarm": finding.alarm,
        "biological": finding.biological,
        "beside": finding.beside,
        "values": values + _say_more(len(finding.matches) - MOST_NAMED),
        "cells": finding.cells,
        "explained": max(match.explained for match in finding.matches),
        "sentence": finding.sentence,
    }


def _say_full(d: str, e: str, matches: Sequence[Match]) -> str:
    first = matches[0]
    return (
        f"What {_say_effect(d, first)} cannot be told from what {e}={first.beside[0]} does: all "
        f"{count_noun(first.cells, 'cell')} of {_list(first.values)} have {e}={first.beside[0]}, "
        f"and no others have.{_say_others(matches, 'and')}"
    )


def _say_near(d: str, e: str, matches: Sequence[Match]) -> str:
    first = matches[0]
    return (
        f"What {_say_effect(d, first)} can hardly be told from what {e}={first.beside[0]} does: "
        f"{_say_share(first.shared, first.cells)} the {count_noun(first.cells, 'cell')} of "
        f"{_list(first.values)} have {e}={first.beside[0]}, and they are "
        f"{_say_share(first.shared, first.beside_cells)} the cells that have."
        f"{_say_others(matches, 'and')}"
    )


def _say_nested(d: str, e: str, matches: Sequence[Match]) -> str:
    numbers = [f"{_list(match.values)} has {len(match.beside):,}" for match in matches[:MOST_NAMED]]
    fewest = min(len(match.beside) for match in matches)
    strict = all(match.cells == match.beside_cells == match.shared for match in matches)
    return (
        f"Differences in {d} are differences between values of {e}, each of which has "
        f"{'' if strict else 'nearly '}one {d} alone: {', '.join(numbers)}"
        f"{_say_more(len(matches) - MOST_NAMED)}. They can be told only by comparing several "
        f"values of {e}; the fewest are {fewest:,}."
    )


def _say_single(d: str, e: str, matches: Sequence[Match]) -> str:
    question = f"Whether {d}={matches[0].values[0]} is the same elsewhere"
    return _say_alone(question, e, matches, "in")


def _say_together(d: str, e: str, matches: Sequence[Match]) -> str:
    question = f"What {e} does to {d}={matches[0].values[0]}"
    return _say_alone(question, e, matches, "at")


def _say_alone(question: str, e: str, matches: Sequence[Match], word: str) -> str:
    first = matches[0]
    return (
        f"{question} cannot be told: {_say_share(first.shared, first.cells)} its "
        f"{count_noun(first.cells, 'cell')} have {e}={first.beside[0]}.{_say_others(matches, word)}"
    )


def _ask(kind: str, d: str, e: str, explained: float) -> str:
    if kind != "nested":
        told = "cannot" if kind == "full" else "can hardly"
        return f"What {d} does {told} be told from what {e} does"
    told = "can be told only" if explained == 1 else "can hardly be told but"
    return f"What {d} does {told} by comparing several values of {e}"


def _say_variation(d: str, e: str, matches: Sequence[Match], scale: str | None, alone: bool) -> str:
    share = f"{_say_share(matches[0].explained, 1)} the variation of {scale or d}"
    cells = count_noun(sum(match.cells for match in matches), "cell")
    if scale is None:
        return f"{share} in {cells} goes along with {e}"
    column = e if scale == d else d
    pairs = [(m.values[0], m.beside[0])[:: 1 if scale == d else -1] for m in matches]
    if alone:
        numbers, value = pairs[0]
        return (
            f"{share} lies between values of {column}, most of it between {value} ({numbers}) and "
            "the others"
        )
    named = ", ".join(f"{numbers} in {value}" for numbers, value in pairs[:MOST_NAMED])
    return (
        f"{share} in {cells} lies between the {len(matches):,} values of {column} "
        f"({named}{_say_more(len(matches) - MOST_NAMED)})"
    )


SENTENCES: dict[str, Callable[[str, str, Sequence[Match]], str]] = {
    "full": _say_full,
    "near": _say_near,
    "nested": _say_nested,
    "single": _say_single,
    "together": _say_together,
}


def _say_effect(d: str, match: Match) -> str:
    one = len(match.values) == 1
    return f"{d}={_list(match.values)} {'does' if one else 'have in common'}"


def _say_others(matches: Sequence[Match], word: str) -> str:
    others = [
        f"{_list(match.values)} {word} {match.beside[0]} ({count_noun(match.cells, 'cell')})"
        for match in matches[1:MOST_NAMED]
    ]
    more = _say_more(len(matches) - MOST_NAMED)
    return f" So it is with {', '.join(others)}{more}." if others else ""


def _say_share(part: float, whole: float) -> str:
    return "all" if part == whole else f"{np.floor(1000 * part / whole) / 10:.1f} % of"


def _say_more(number: int) -> str:
    return f" and {number:,} more" if number > 0 else ""


def _list(values: Sequence[str]) -> str:
    return ", ".join(values[:MOST_NAMED]) + _say_more(len(values) - MOST_NAMED)
