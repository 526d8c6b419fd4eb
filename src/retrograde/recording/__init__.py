"""From a user's torch model to what the engine needs: forward and backward passes, looked at.

record.py finds the recurrent layers (layers.py) and puts hooks on them (watch.py, forward.py).
They copy what goes in and out (calls.py), keep what each backward pass brings (passes.py) and find
out which call carries on the state of which (links.py, graph.py). When a layer of the recording
(recording.py) is asked for, calls that belong together become one cell with inputs and adjoints
(assemble.py: chains.py, readings.py, masks.py). What torch.compile and checkpoints do to a pass is
met in uncompiled.py and checkpoints.py. All hooks are gone when the `with` block ends.
storage.py writes recordings to files and reads them.
"""

from retrograde.recording.cell import record_cell
from retrograde.recording.layers import recurrent_layers
from retrograde.recording.record import record
from retrograde.recording.recording import Recorded, Recording
from retrograde.recording.storage import load, save

__all__ = ["Recorded", "Recording", "load", "record", "record_cell", "recurrent_layers", "save"]
