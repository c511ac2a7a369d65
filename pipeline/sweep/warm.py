"""Imported once by the process that workers are forked from: they share what it loads, and have 40 instead of 300 MiB each."""

from __future__ import annotations

import gc

import torch

from polyp_difom.pipeline.objectives.protocol import OBJECTIVES
from polyp_difom.pipeline.students.protocol import STUDENTS
from polyp_difom.pipeline.sweep import worker  # noqa: F401

STUDENTS.names()
OBJECTIVES.names()
weight = torch.nn.Parameter(torch.zeros(1))
weight.grad = torch.zeros(1)
torch.optim.AdamW([weight]).step()  # its first step imports PyTorch's compiler
gc.collect()
gc.freeze()  # else the collector would write into every page that it walks
