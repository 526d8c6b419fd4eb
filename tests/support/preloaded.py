"""What the process holds that programs start as copies of (processes.py)."""

import gc

import altair  # noqa: F401
import pandas  # noqa: F401
import pydantic.json_schema
import pydantic.type_adapter  # noqa: F401
import sybil  # noqa: F401
import torch._dynamo  # noqa: F401 (the first optimiser of a process does)
import typer  # noqa: F401
import typer._adapters  # noqa: F401
import vl_convert  # noqa: F401

import retrograde.cli.commands  # noqa: F401
import support.processes  # noqa: F401
from support import bundled

bundled.use()

# A copy that looked for garbage among all of that would write to the pages it has in common with
# this process, each of which is copied then: most of the time of a short program.
gc.collect()
gc.freeze()
