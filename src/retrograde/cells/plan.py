"""A graph made ready to be run: the programs that the backward recursions ask for, by name."""

from functools import cached_property

from retrograde.cells.edges import Opaque, Use
from retrograde.cells.folding import Blocks, Folded, Wanted
from retrograde.cells.graph import Graph
from retrograde.cells.program import Program


class Plan:
    """The programs that pull adjoints back through a graph, each made when it is first asked for.

    Args:
        graph: the linearised step [B, ...], or many along a first axis [K, B, ...].

    Attributes:
        folded: the graph folded, which the programs are made from.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.folded = Folded(graph)
        self._by_crossing: Program | None = None

    @property
    def uses(self) -> list[tuple[Blocks, list[tuple[Use, int]]]]:
        """Adjoints side by side, and the uses that share them with the first row of each."""
        return self.folded.uses

    @property
    def functions(self) -> list[Opaque]:
        """The edges whose gradients a function forms."""
        return self.folded.functions

    @cached_property
    def back(self) -> "Program":
        """From the adjoint of s_k to that of s_{k-1}."""
        return self.split(None)

    @cached_property
    def by_route(self) -> "Program":
        """The same along each route alone."""
        return self.split(*(route.__eq__ for route in self.graph.routes))

    def by_crossing(self, recurrent: frozenset[str]) -> "Program":
        """Twice the same: along the routes that cross no recurrent weights, and along these."""
        if self._by_crossing is None:
            self._by_crossing = self.split(lambda r: r not in recurrent, recurrent.__contains__)
        return self._by_crossing

    def split(self, *wanted: Wanted | None) -> "Program":
        """The same, for each of several choices, along the chosen routes alone."""
        program = Program(self.folded)
        for routes in wanted:
            program.give(self.graph.before, self.graph.state_size, routes)
        return program

    @cached_property
    def to_input(self) -> "Program":
        """From the adjoint of s_k to that of x_k."""
        program = Program(self.folded)
        program.give(self.graph.reads, self.graph.input_size, None)
        return program

    @cached_property
    def to_uses(self) -> "Program":
        """From the adjoint of s_k to those that gradients follow from, and their operands."""
        return self._with_uses(Program(self.folded))

    @cached_property
    def back_and_uses(self) -> "Program":
        """Both: to that of s_{k-1}, and to those that gradients follow from."""
        return self._with_uses(self.split(None))

    def _with_uses(self, program: "Program") -> "Program":
        for blocks, uses in self.uses:
            program.keep_side_by_side(blocks, [use.operand for use, _ in uses if not use.diagonal])
        for edge in self.functions:
            program.keep_function(edge)
        return program
