"""Several objectives at once, by weights: "multiscale+cwd:0.5"; and how the teachers' share moves over a training.

A member is `name[@role[.role]...][:weight]`: "multiscale@decoder" teaches the student's decoder taps alone,
"cwd@encoder.decoder:0.5" all but the bottleneck, at half weight. A member of weight 0 costs nothing, but its needs count:
"shuffled+cwd:0.5" is the control of "multiscale+cwd:0.5", and "shuffled:0+cwd" that of "cwd", with the wrong frame's maps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Literal

import torch
from torch import Tensor, nn

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.objectives.protocol import OBJECTIVES, Key, Needs, Objective, Targets, TargetSpec
from polyp_difom.pipeline.students.protocol import Tap

FIRST = 0.25
"""Share of the training that `representation-first` gives to the teachers alone."""

ROLES = ("encoder", "bottleneck", "decoder")
"""Of the taps that "@" chooses among."""

Schedule = Literal["constant", "decay", "representation-first"]
SCHEDULES: dict[Schedule, Callable[[float], tuple[float, float]]] = {
    "constant": lambda progress: (1.0, 1.0),
    "decay": lambda progress: (1.0, (1 + math.cos(math.pi * progress)) / 2),
    "representation-first": lambda progress: (float(progress >= FIRST), 1.0),
}
"""What segmentation loss and distance weigh at a share of the training: alike throughout, the distance down to nothing along
half a cosine, or the distance alone at first."""


class Weighted(Objective):
    """The weighted sum of several distances, under one schedule.

    Args:
        members: (weight, objective) by what was asked for.
    """

    def __init__(self, members: Mapping[str, tuple[float, Objective]], weight: float, schedule: Schedule):
        super().__init__((), {}, weight)
        self.members = dict(members)
        self.heads = nn.ModuleList(objective for _, objective in members.values())
        self.schedule = SCHEDULES[schedule]
        self.keys = list(dict.fromkeys(key for _, objective in members.values() for key in objective.keys))

    def shares(self, progress: float) -> tuple[float, float]:
        """See `Objective.shares`."""
        segmentation, distance = self.schedule(progress)
        return segmentation, self.weight * distance

    def distance(self, logits: Tensor, taps: Mapping[str, Tensor], targets: Targets) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See `Objective.distance`; where there are several, the log names the member in front: "cwd:litemedsam/s16/..."."""
        total, parts = [], dict[str, Tensor]()
        for name, (weight, objective) in self.members.items():
            distance, seen = objective.distance(logits, taps, targets)
            if distance is not None:
                total.append(weight * distance)
            parts |= {f"{name}:{key}": value for key, value in seen.items()} if len(self.members) > 1 else seen
        return torch.stack(total).sum() if total else None, parts


def parse(text: str) -> dict[str, float]:
    """Weights by member: "multiscale+cwd@decoder:0.5" -> {"multiscale": 1.0, "cwd@decoder": 0.5}.

    Raises:
        UsageError: an unknown objective or role, a member twice, a weight that is no number of at least 0 or of what has no
            distance, or members that exclude others.
    """
    weights: dict[str, float] = {}
    parts = [part.strip() for part in text.split("+")]
    for part in parts:
        member, colon, number = part.partition(":")
        if member == "auto":
            raise UsageError("auto chooses one objective for one training", where="--objective", got=text,
                             wanted="`distill --objective auto` alone; no part of others, no value of a sweep")  # fmt: skip
        name, roles = _member(member)
        member = f"{name}@{'.'.join(roles)}" if roles else name
        try:
            weight = float(number) if colon else 1.0
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(
                f"the weight of objective {name!r} is no number of at least 0", got=number or "nothing", wanted=f"{member}:0.5"
            )
        if member in weights:
            raise UsageError(f"objective {member!r} is there twice", where="--objective", got=text)
        if colon and OBJECTIVES.get(name).needs == Needs():
            raise UsageError(f"objective {name!r} has no distance to weigh", where="--objective", got=text, wanted=name)
        if OBJECTIVES.get(name).alone and len(parts) > 1:
            raise UsageError(f"objective {name!r} cannot be combined with others", where="--objective", got=text)
        weights[member] = weight
    return weights


def _member(text: str) -> tuple[str, tuple[str, ...]]:
    """ "multiscale@decoder" -> ("multiscale", ("decoder",)), roles in their own order; none named: ()."""
    name, at, named = text.partition("@")
    objective, wanted = OBJECTIVES.get(name), named.split(".")
    if at and not objective.by_role:
        fitting = ", ".join(n for n in OBJECTIVES.names() if OBJECTIVES.get(n).by_role)
        raise UsageError(
            f"objective {name!r} has no choice of taps", where="--objective", got=text, wanted=f"{name}, or @ after {fitting}"
        )
    if at and (strangers := [role for role in wanted if role not in ROLES]):
        raise UsageError(
            f"unknown role of taps {strangers[0]!r}", where="--objective", got=text,
            wanted=f"some of {', '.join(ROLES)}, such as {name}@decoder or {name}@encoder.decoder",
        )  # fmt: skip
    return name, tuple(role for role in ROLES if at and role in wanted)


def needs_of(text: str) -> Needs:
    """What an objective, or all members of a combination, read."""
    each = [OBJECTIVES.get(_member(member)[0]).needs for member in parse(text)]
    return Needs(**{field.name: any(getattr(needs, field.name) for needs in each) for field in fields(Needs)})


def is_shuffled(text: str, of: str) -> bool:
    """Whether an objective is another one, `of`, towards the wrong frame's maps: "shuffled+cwd" of "multiscale+cwd"."""

    def read(objective: str) -> list[tuple[str, float]]:
        members = [(re.sub("^shuffled", "multiscale", member), weight) for member, weight in parse(objective).items()]
        return sorted(member for member in members if member[1])

    return needs_of(text).shuffled and not needs_of(of).shuffled and read(text) == read(of)


def build_objective(
    text: str, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec], weight: float = 1.0, schedule: Schedule = "constant"
) -> Objective:
    """The objective or combination called `text`, with fresh heads.

    Args:
        weight: of all distances against the segmentation loss.

    Raises:
        UsageError: see `parse`; or the targets do not fit; or a schedule for an objective that has its own phases, or none; or
            one that leaves nothing to learn.
    """
    members = {member: (share, _made(member, taps, targets)) for member, share in parse(text).items() if share}
    if len(members) == 1 and schedule == "constant":
        ((share, objective),) = members.values()
        objective.weight = weight * share
        return objective
    if any(objective.alone for _, objective in members.values()):
        raise UsageError(
            f"objective {text!r} takes no schedule of weights",
            got=schedule,
            wanted="constant",
            remedy="leave --weight-schedule away",
        )
    if schedule == "representation-first" and not (members and weight):
        raise UsageError(
            "nothing would be learned at first", where="--weight-schedule", got=f"{schedule}, and all distances weigh 0",
            wanted="a weight above 0, or another schedule",
        )  # fmt: skip
    return Weighted(members, weight, schedule)


def _made(member: str, taps: tuple[Tap, ...], targets: Mapping[Key, TargetSpec]) -> Objective:
    name, roles = _member(member)
    chosen = tuple(tap for tap in taps if not roles or tap.role in roles)
    if roles and not chosen:
        raise UsageError(
            "the student has no tap of this role", where="--objective", got=member, wanted=", ".join({tap.role for tap in taps})
        )
    return OBJECTIVES.get(name)(chosen, targets)
