"""What a store cost to make, and when that pays: cached maps against teachers that run beside the student."""

from __future__ import annotations

import math

from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline.schema import int8_errors

EPOCHS = 40
"""Of a student for which the comparison is made."""


def break_even(teacher_seconds: float, write_seconds: float, views: int, epochs: int = EPOCHS) -> tuple[float, int]:
    """(seconds that one student would spend on online teachers, first student from which on the cache is cheaper).

    Online, every epoch runs the teachers over every frame in one of its views; the cache ran them over all views once.
    """
    online = epochs * teacher_seconds / views
    return online, max(1, math.floor((teacher_seconds + write_seconds) / online) + 1) if online else 1


def cost_line(store: FeatureStore) -> str:
    """One line from the ledger: seconds of teachers and of writing, bytes, and the break-even; and what int8 maps lose.

    The ledger is of shards: fitting the bases and measuring flips and precision, before the first of them, is not in it.
    """
    ledger, views = store.ledger(), len(store.manifest.views)
    teachers, writing = ledger["teacher_seconds"], ledger["write_seconds"]
    size = sum(store.location.sizes().values()) / 2**20
    online, student = break_even(teachers, writing, views)
    errors = int8_errors(store)
    lost = f"; int8 moves maps by up to {max(errors.values()):.2%} of their norm" if errors else ""
    return (
        f"teachers {teachers:,.1f} s, writing {writing:,.1f} s (fitting bases and measuring flips not counted), "
        f"{size:,.1f} MiB; run beside a student of {EPOCHS} epochs "
        f"(each frame in one of {views} views an epoch) teachers would take {online:,.1f} s: "
        f"the cache is cheaper from student {student} on{lost}"
    )
