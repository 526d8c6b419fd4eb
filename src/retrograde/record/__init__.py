"""From a user's torch model to what the engine needs: forward and backward passes, looked at.

record.py puts hooks on the recurrent layers (watch.py), which copy what goes in and out (calls.py)
and find out which call carries on the state of which (links.py, graph.py). When a recorded layer is
asked for, calls that belong together become one cell with inputs and adjoints (chains.py,
readings.py, masks.py, assemble.py). All hooks are gone when the `with` block ends.
"""

from retrograde.record.cell import record_cell
from retrograde.record.layers import recurrent_layers
from retrograde.record.record import record
from retrograde.record.recording import Recorded, Recording

__all__ = ["Recorded", "Recording", "record", "record_cell", "recurrent_layers"]
