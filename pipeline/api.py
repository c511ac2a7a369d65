"""The Python interface, see docs/api.md: every name is imported from its home when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyp_difom.cache.store import FeatureStore
    from polyp_difom.pipeline.data.sources import Source
    from polyp_difom.pipeline.distill import DistillConfig, distill
    from polyp_difom.pipeline.evaluation.evaluate import evaluate
    from polyp_difom.pipeline.models.hub import from_pretrained
    from polyp_difom.pipeline.models.loading import load_model
    from polyp_difom.pipeline.models.protocol import Model
    from polyp_difom.pipeline.schema import embedding_key
    from polyp_difom.pipeline.students.protocol import Student, build_student

    open_store = FeatureStore.open

_HOMES = {
    "FeatureStore": "cache.store",
    "embedding_key": "pipeline.schema",
    "Student": "pipeline.students.protocol",
    "build_student": "pipeline.students.protocol",
    "DistillConfig": "pipeline.distill",
    "distill": "pipeline.distill",
    "Model": "pipeline.models.protocol",
    "load_model": "pipeline.models.loading",
    "from_pretrained": "pipeline.models.hub",
    "Source": "pipeline.data.sources",
    "evaluate": "pipeline.evaluation.evaluate",
}

__all__ = [
    "DistillConfig",
    "FeatureStore",
    "Model",
    "Source",
    "Student",
    "build_student",
    "distill",
    "embedding_key",
    "evaluate",
    "from_pretrained",
    "load_model",
    "open_store",
]


def __getattr__(name: str) -> Any:
    if name == "open_store":
        return __getattr__("FeatureStore").open
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"polyp_difom.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
