"""The caption grammar of the emoji scenes: p(caption | glyph) and, by Bayes' rule, its exact inverse.

A caption is `THING` or `THING on BACKGROUND`. THING is a tag (a word of the Unicode subgroup: "mammal", "drink") or
some words of the name in order ("astronaut", "woman medium skin tone"). Most captions are true of many glyphs.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from math import comb

import numpy as np

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (214, 69, 65),
    "orange": (240, 140, 50),
    "yellow": (248, 212, 80),
    "green": (75, 170, 90),
    "blue": (65, 120, 205),
    "purple": (130, 80, 180),
    "pink": (245, 165, 200),
    "gray": (125, 128, 132),
    "white": (255, 255, 255),
}
TAG_PROBABILITY = 0.4
BACKGROUND_PROBABILITY = 0.5
COUNT_WEIGHTS = (5.0, 3.0, 2.0, 1.0)
"""Relative probabilities of keeping 1, 2, 3, ... words of a name; the last one repeats."""

_STOP_WORDS = frozenset(["a", "an", "and", "at", "for", "in", "of", "on", "or", "the", "to", "with", "other"])
_TONE = re.compile(r"(?:medium-light|medium-dark|light|medium|dark) skin tone")
_UNIT = re.compile(rf"{_TONE.pattern}|[a-z0-9][a-z0-9'-]*")


def plain(text: str) -> str:
    """Lowercase, without accents or typographic apostrophes.

    >>> plain("Côte d’Ivoire")
    "cote d'ivoire"
    """
    folded = unicodedata.normalize("NFKD", text.replace("’", "'"))
    return "".join(c for c in folded if not unicodedata.combining(c)).lower()


def name_units(name: str) -> tuple[str, ...]:
    """Return the words of a name that a caption may use, in order; a skin tone is one unit.

    >>> name_units("woman and man holding hands: medium skin tone, medium-dark skin tone")
    ('woman', 'man', 'holding', 'hands', 'medium skin tone', 'medium-dark skin tone')
    """
    units = (match.group() for match in _UNIT.finditer(plain(name)))
    return tuple(unit for unit in units if unit not in _STOP_WORDS)


def subgroup_tags(subgroup: str) -> tuple[str, ...]:
    """Return the words of a subgroup.

    >>> subgroup_tags("animal-mammal"), subgroup_tags("sky & weather")
    (('animal', 'mammal'), ('sky', 'weather'))
    """
    return tuple(word for word in re.findall(r"[a-z]+", subgroup) if word not in _STOP_WORDS)


def count_subsequences(part: tuple[str, ...], whole: tuple[str, ...]) -> int:
    """Count the ways in which `part` is a subsequence of `whole`.

    >>> count_subsequences(("person",), ("kiss", "person", "person"))
    2
    """
    ways = [1] + [0] * len(part)
    for unit in whole:
        for place in range(len(part), 0, -1):
            if part[place - 1] == unit:
                ways[place] += ways[place - 1]
    return ways[-1]


def count_law(num_units: int) -> np.ndarray:
    """Return the probabilities of keeping 1, 2, ..., num_units words."""
    weights = np.array([COUNT_WEIGHTS[min(k, len(COUNT_WEIGHTS) - 1)] for k in range(num_units)])
    return weights / weights.sum()


@dataclass(frozen=True)
class AnswerSet:
    """The correct answers to a caption.

    Attributes:
        glyphs: ids of the glyphs that the caption describes, and of glyphs that look identical.
        backgrounds: indices into `BACKGROUNDS`.
        looks: the distinct drawings among the glyphs.
        probabilities: p(look | caption), aligned with `looks`.
    """

    glyphs: np.ndarray
    backgrounds: np.ndarray
    looks: np.ndarray = field(repr=False)
    probabilities: np.ndarray = field(repr=False)

    def expected_distinct(self, draws: int) -> float:
        """Expected number of distinct looks among independent draws from p(look | caption)."""
        # sum over looks of P(drawn at least once)
        return float((1 - (1 - self.probabilities) ** draws).sum())


class CaptionGrammar:
    """The distribution of captions given a glyph, and its inverse.

    Args:
        names: Unicode name of each glyph.
        subgroups: Unicode subgroup of each glyph.
        looks: id per glyph, equal for glyphs that look identical (some flags, mirrored arrows).
    """

    def __init__(self, names: list[str], subgroups: list[str], looks: list[int]) -> None:
        self.units = [name_units(name) for name in names]
        self.tags = [subgroup_tags(subgroup) for subgroup in subgroups]
        self.looks = np.asarray(looks)

    @cached_property
    def _glyphs_with(self) -> dict[str, frozenset[int]]:
        found: dict[str, set[int]] = {}
        for glyph, (units, tags) in enumerate(zip(self.units, self.tags, strict=True)):
            for term in (*units, *tags):
                found.setdefault(term, set()).add(glyph)
        return {term: frozenset(glyphs) for term, glyphs in found.items()}

    def caption(self, glyph: int, background: int, rng: np.random.Generator) -> str:
        """Sample a caption of a glyph on a background."""
        units, tags = self.units[glyph], self.tags[glyph]
        if not units or rng.random() < TAG_PROBABILITY:
            thing = tags[int(rng.integers(len(tags)))]
        else:
            count = 1 + int(rng.choice(len(units), p=count_law(len(units))))
            kept = sorted(rng.choice(len(units), size=count, replace=False))
            thing = " ".join(units[place] for place in kept)
        named = rng.random() < BACKGROUND_PROBABILITY
        return f"{thing} on {list(BACKGROUNDS)[background]}" if named else thing

    def probability(self, part: tuple[str, ...], glyph: int) -> float:
        """Return the probability that a glyph's caption uses exactly these words, ignoring the background."""
        units, tags = self.units[glyph], self.tags[glyph]
        by_tag = float(len(part) == 1) * tags.count(part[0]) / len(tags)
        if not units:
            return by_tag
        by_name = 0.0
        if len(part) <= len(units):
            # P(keep k words) x (subsets of k words that spell `part`) / (n choose k)
            spelled = count_subsequences(part, units) / comb(len(units), len(part))
            by_name = count_law(len(units))[len(part) - 1] * spelled
        return TAG_PROBABILITY * by_tag + (1 - TAG_PROBABILITY) * float(by_name)

    def answers(self, caption: str) -> AnswerSet:
        """Return the exact set of glyphs and backgrounds that a caption describes; empty if there is none."""
        thing, _, background = plain(caption).partition(" on ")
        names = list(BACKGROUNDS)
        part = tuple(match.group() for match in _UNIT.finditer(thing))
        holders = [self._glyphs_with.get(term, frozenset()) for term in part] or [frozenset()]
        weights = {glyph: self.probability(part, glyph) for glyph in frozenset.intersection(*holders)}
        right = np.array(sorted(glyph for glyph, weight in weights.items() if weight > 0), dtype=np.int64)
        looks, place = np.unique(self.looks[right], return_inverse=True)
        # Bayes with a uniform prior over glyphs; glyphs of the same look add up.
        law = np.bincount(place, weights=[weights[int(glyph)] for glyph in right], minlength=len(looks))
        # No background in the caption: any will do. An unknown one: none will.
        allowed = [i for i, name in enumerate(names) if not background or name == background]
        return AnswerSet(
            glyphs=np.flatnonzero(np.isin(self.looks, looks)),
            backgrounds=np.array(allowed, dtype=np.int64),
            looks=looks,
            probabilities=law / max(law.sum(), 1e-12),
        )
