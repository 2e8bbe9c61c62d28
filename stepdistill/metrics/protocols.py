"""A protocol is data: what is drawn, from which seeds, in which features. Its hash stands beside every number."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Protocol:
    """One way of measuring. Numbers of different hashes are never compared."""

    name: str
    features: str
    """The feature network, by the name of its folder."""
    frechet_features: Literal["pooled", "embedding"]
    """Which of its outputs the Frechet and kernel distances are taken of."""
    judge: str
    """How the glyph and the background of a picture are told."""
    num_images: int
    """Captions measured, one picture each; as many real pictures are the reference, and as many again the floor."""
    coverage_captions: int
    """Captions whose variety is measured."""
    coverage_seeds: int
    """Pictures drawn of each of them."""
    coverage_min_glyphs: int
    """They are the first captions with at least this many right glyphs."""
    seed: int = 0
    """Of the generators of the pictures."""
    reference_seed: int = 90_001
    """Of the real scenes: the reference. The floor takes the next seed."""

    @property
    def hash(self) -> str:
        """Names everything but the number of images, which stands in each row as `n`."""
        record = {name: value for name, value in asdict(self).items() if name != "num_images"}
        return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=6).hexdigest()

    def with_images(self, num_images: int) -> Protocol:
        """The same protocol on fewer or more captions."""
        return replace(self, num_images=num_images)

    def to_json(self) -> dict[str, Any]:
        """All fields and the hash."""
        return asdict(self) | {"hash": self.hash}


EMOJI = Protocol(
    name="emoji",
    features="emoji-clip",
    frechet_features="embedding",
    judge="shapes-1",
    num_images=2000,
    coverage_captions=32,
    coverage_seeds=16,
    coverage_min_glyphs=8,
)
"""The embedded problem: the frozen evaluation captions, real scenes as reference, `emoji-clip` as eye."""

PROTOCOLS = {protocol.name: protocol for protocol in (EMOJI,)}
