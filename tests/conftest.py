"""Settings that every test shares."""

import os

import hypothesis
import torch

torch.set_num_threads(2)

# One fixed set of examples for a given test, so that CI repeats what a developer saw.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
