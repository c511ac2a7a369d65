"""Imported once by the process that workers are forked from: they share what it loads, and have 40 instead of 300 MiB each."""

from __future__ import annotations

import gc
import importlib

from polyp_difom.pipeline.objectives.protocol import OBJECTIVES
from polyp_difom.pipeline.students.protocol import STUDENTS
from polyp_difom.pipeline.sweep import worker  # noqa: F401

STUDENTS.names()
OBJECTIVES.names()
# As an optimiser's first step does. The step itself asks whether there is a GPU, and after that no fork could use one.
importlib.import_module("torch._dynamo")
gc.collect()
gc.freeze()  # else the collector would write into every page that it walks
