"""From a user's torch model to what the engine needs. The story, file by file:

1. record.py: the `with` block around the user's forward and backward pass. It finds the recurrent
   layers (layers.py, form.py), replaces what torch has no hook for (interception.py,
   backward_calls.py, uncompiled.py) and puts hooks on each layer (hooks.py, copies.py), which copy
   what goes in and out, as the layer is made or as it is declared (readers.py, calls.py), the
   weights (weights_in_use.py, weights.py, precision.py), and the gradients that arrive in each
   backward pass (gradient_hooks.py, passes.py, backward_pass.py).
2. states.py follows each state through the autograd graph (graph.py, places.py) from call to call;
   masks, scalings and reorderings in between become maps from entries to entries (entry_maps.py).
   When a backward pass begins, observation.py puts hooks where gradients of the loss meet those of
   later calls; what else a loop does with its state is found by loops.py.
3. When the block ends filling.py finds what each pass went through, or why nothing can be recorded.
4. assembly.py puts the calls of a layer together when it is asked for. sequences.py joins those
   that continue each other's state, with what the loss gives to each (segment.py) and what happened
   to the state in between (origins.py, reads.py, changes.py); timeline.py lays them out as one
   stretch of time, and replay.py runs their cell again over it. That of a declared recurrence has
   to give what its module gave (agreement.py).
5. A `Recorded` is one pass through one layer (recorded.py), a `Recording` holds them by name
   (recording.py), and storage.py writes them to files.

A bare cell has no module to put hooks on: bare_cell.py runs it and differentiates the loss itself.
All hooks are gone when the block ends.
"""

from retrograde.recording.bare_cell import record_cell
from retrograde.recording.layers import recurrent_layers
from retrograde.recording.record import record
from retrograde.recording.recorded import Recorded
from retrograde.recording.recording import Recording
from retrograde.recording.storage import load, save

__all__ = [
    "Recorded",
    "Recording",
    "load",
    "record",
    "record_cell",
    "recurrent_layers",
    "save",
]
