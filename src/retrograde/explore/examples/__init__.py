"""Questions that people asked, as examples with their answers, each computed when it is shown.

They come from the pages that this package grew from: a derivation by hand over three steps, an
article that prints the numbers of an LSTM, and questions about why LSTMs explode, what to clip, and
which eigenvalues matter.
"""

from retrograde.explore.examples.by_hand import (
    INPUTS,
    three_steps,
    three_steps_in_tex,
    three_steps_in_words,
)
from retrograde.explore.examples.clipping import (
    EXPLODING,
    clipped_in_words,
    clipped_where,
    lengths_chart,
    lengths_in_markdown,
    lengths_in_words,
    long_pass,
)
from retrograde.explore.examples.eigenvalues import (
    factor_per_step,
    factors_chart,
    factors_in_markdown,
    factors_in_words,
    nilpotent,
)
from retrograde.explore.examples.exploding import (
    ALL,
    CAROUSEL,
    ROUTES,
    growth_by_gate,
    growth_in_markdown,
    growth_in_words,
    over_steps,
)
from retrograde.explore.examples.printed import (
    PRINTED,
    components,
    components_in_markdown,
    components_in_words,
    printed_numbers,
)

__all__ = [
    "ALL",
    "CAROUSEL",
    "EXPLODING",
    "INPUTS",
    "PRINTED",
    "ROUTES",
    "clipped_in_words",
    "clipped_where",
    "components",
    "components_in_markdown",
    "components_in_words",
    "factor_per_step",
    "factors_chart",
    "factors_in_markdown",
    "factors_in_words",
    "growth_by_gate",
    "growth_in_markdown",
    "growth_in_words",
    "lengths_chart",
    "lengths_in_markdown",
    "lengths_in_words",
    "long_pass",
    "nilpotent",
    "over_steps",
    "printed_numbers",
    "three_steps",
    "three_steps_in_tex",
    "three_steps_in_words",
]
