"""Recurrences of one's own, and of other packages, as `record` finds them in a model.

`KNOWN` are the declarations that ship, by the qualified names of classes: of torchrecurrent's
cells, EA-LSTM (neuralhydrology), LiGRU (speechbrain), CfC and LTC (ncps), torchaudio's RNNT,
opacus' DPLSTM, QRNN, minGRU-pytorch, the Mamba (also of FalconMamba and Jamba) and xLSTM of
transformers, mambapy, and xlstm. They are found without an argument, and need none of these
packages.
"""

from retrograde.declarations.declaration import Declaration
from retrograde.declarations.known import KNOWN

__all__ = ["KNOWN", "Declaration"]
