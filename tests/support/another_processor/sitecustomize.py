"""With this folder in PYTHONPATH Python, and all that it starts, runs on another processor."""

import os

from rounding import AnotherProcessor

AnotherProcessor(int(os.environ["RETROGRADE_TEST_ULPS"])).__enter__()
