"""Which parameter belongs to which group, by names alone, so that any model will do."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from retrograde import _checks
from retrograde.errors import ArgumentError

Patterns = str | Sequence[str]
"""One or several shell patterns for parameter names, such as "encoder.*"."""

RECURRENT = ("weight_hh", "bias_hh", "weight_ch", "weight_gg", "weight_hr")
INPUT = ("weight_ih", "bias_ih")

ALL = "all"
"""The name for the groups taken together."""


def scope_of(name: str) -> str:
    """The scope of a parameter, from the names of torch.nn's recurrent layers and ours.

    | scope | parameters |
    |---|---|
    | `recurrent` | weight_hh, bias_hh, weight_ch, weight_gg (between gates), weight_hr |
    | `input` | weight_ih, bias_ih |
    | `output` | everything outside recurrent layers: a read-out, but also what lies before them |

    The name may go on behind these (`_l0_reverse`) and have anything before or, where a weight is
    parametrized, after it.

    Example:
        >>> scope_of("encoder.weight_hh_l0"), scope_of("encoder.bias_ih_l0"), scope_of("head.bias")
        ('recurrent', 'input', 'output')
    """
    parts = _checks.instance("name", name, str, "the name of a parameter").split(".")
    if any(part.startswith(RECURRENT) for part in parts):
        return "recurrent"
    return "input" if any(part.startswith(INPUT) for part in parts) else "output"


def grouped(names: Iterable[str], own: Mapping[str, Patterns] | None) -> dict[str, tuple[str, ...]]:
    """Every name in exactly one group: in the user's own that matches, or else in its scope.

    Raises:
        ArgumentError: if a pattern matches nothing, two groups overlap, or a group is called "all".
    """
    check_own(own)
    names, own = tuple(names), own or {}
    if ALL in own:
        raise ArgumentError(f"a group cannot be called {ALL!r}, which means all groups together")
    found: dict[str, list[str]] = {}
    taken: dict[str, str] = {}
    for group, patterns in own.items():
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            matched = [name for name in names if fnmatchcase(name, pattern)]
            if not matched:
                raise ArgumentError(
                    f"the pattern {pattern!r} of group {group!r} matches no parameter; "
                    f"there are {', '.join(names)}"
                )
            for name in matched:
                if taken.setdefault(name, group) != group:
                    raise ArgumentError(
                        f"the groups {taken[name]!r} and {group!r} overlap: both hold {name!r}; a "
                        "parameter belongs to one group"
                    )
    for name in names:
        found.setdefault(taken.get(name) or scope_of(name), []).append(name)
    order = [*own, *(g for g in ("recurrent", "input", "output") if g not in own)]
    return {group: tuple(found[group]) for group in order if group in found}


def check_own(groups: object) -> None:
    """Refuse what cannot be groups of the user's own, whatever the model.

    Raises:
        ArgumentError: with what it is.
    """
    words = "of group names to patterns of parameter names, as in {'encoder': 'encoder.*'}"
    if groups is None:
        return
    for group, patterns in _checks.mapping("groups", groups, words).items():
        if not isinstance(group, str) or not _are_patterns(patterns):
            given = _checks.shown({group: patterns})
            raise ArgumentError(f"groups must be a mapping {words}; got {given}")


def _are_patterns(value: object) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, Sequence) and all(isinstance(pattern, str) for pattern in value)
