"""All claims, text by text."""

from retrograde.studies.claims import (
    by_hand,
    clipping,
    exploding,
    generations,
    learnt,
    near_and_far,
)
from retrograde.studies.claims.claim import Claim

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for module in (exploding, near_and_far, generations, learnt, by_hand, clipping)
    for claim in module.CLAIMS
}
"""Every claim by its name."""
