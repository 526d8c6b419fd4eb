"""Axis letters of every shape in the package.

Shapes stand in the signatures, as jaxtyping annotations, and are checked while the tests run:

    T  steps of the sequence            B  samples of the batch
    I  input features                   H  hidden units of a layer
    S  state size (all layers, h and c) P  pre-activations of a layer (gates times hidden units)
    E  entry rows (loss steps)          N  rows that are pulled back together (N <= E)
    M  lag bins                         L  any leading axes
"""

from jaxtyping import Float
from torch import Tensor

Input = Float[Tensor, "*L I"]
"""x_k, of one step or of many."""

Projected = Float[Tensor, "*L P"]
"""W x_k + b, what the input gives to the pre-activations."""

State = Float[Tensor, "*L S"]
"""s_k: h, and c where there is one, of all layers."""
