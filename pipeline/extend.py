"""Adds teachers, scales or views to a store without the images it was made from: teachers see the squared frames in it.

What is there keeps its bytes. A killed extension leaves the old store as it was; the same command goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from polyp_difom.cache import extension
from polyp_difom.cache.claims import NoClaims
from polyp_difom.cache.errors import CacheError, UsageError
from polyp_difom.cache.manifest import Continues, Manifest, MapEntry, Spectra, TeacherEntry
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import schema
from polyp_difom.pipeline.basis import Basis
from polyp_difom.pipeline.costs import cost_line
from polyp_difom.pipeline.data.frames import VIEWS
from polyp_difom.pipeline.device import enough_memory, keep_freed_memory, pick_device, pick_precision
from polyp_difom.pipeline.fitting import bases_of, with_flips
from polyp_difom.pipeline.plan import check_space
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.runner import Arrays, Bases, MapsOfTeacher, Runner
from polyp_difom.pipeline.teachers.guard import known_to, require_frame_size, warn_of_validation
from polyp_difom.pipeline.teachers.protocol import Teacher, full_name, implied_weights, load_teacher, weights_digest
from polyp_difom.pipeline.workers import Part, fill


class ExtendConfig(BaseModel):
    """What to add to which store; all else is as the store's manifest says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cache: str
    teachers: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    views: int | None = None
    weights: dict[str, str] = {}
    input_sizes: dict[str, int] = {}
    batch_size: int = Field(default=8, gt=0)
    device: str = "auto"


@dataclass(frozen=True)
class Layout:
    """What a store's manifest says about shapes, as `schema.Layout`."""

    size: int
    views: int
    scales: tuple[str, ...]
    channels: int
    spectra: Spectra
    dtype: schema.MapType

    @classmethod
    def of(cls, manifest: Manifest) -> Layout:
        """That of a store."""
        views, scales = len(manifest.views), tuple(manifest.scales)
        channels, dtype = manifest.basis.channels, schema.map_type(manifest)
        return cls(manifest.frame_size, views, scales, channels, manifest.spectra, dtype)


@dataclass(frozen=True)
class Addition:
    """What an extension will do.

    Attributes:
        manifest: of the extended store.
        teachers: those that run.
        maps: by teacher, which of its maps are made into which new scales.
        groups: of the store, that hold nothing but what is added.
        known: by teacher that is in the store already, the bases of its stored maps.
    """

    manifest: Manifest
    teachers: list[Teacher]
    maps: dict[str, MapsOfTeacher]
    groups: list[str]
    known: dict[str, Bases]


def extend(config: ExtendConfig, progress: Progress | None = None) -> FeatureStore:
    """Add teachers, or scales or views of all teachers that are there, and return the extended store.

    Raises:
        UsageError: none or several of these are named, an unknown name, or what would change what is stored.
        CacheError: the store is incomplete, busy, or was made with other weights; or the disk is full.
        MissingDependencyError: a teacher that cannot be loaded.
    """
    progress = progress or Progress()
    if sum((bool(config.teachers), bool(config.scales), config.views is not None)) != 1:
        wanted = "--teachers NAME,... or --scales s4,... or --views 4"
        raise UsageError("name either teachers or scales or views to add, one at a time", wanted=wanted)
    store = FeatureStore.open(config.cache, writable=True)
    store.require_complete()
    keep_freed_memory()
    device = pick_device(config.device)
    precision, _ = pick_precision(device, store.manifest.precision)
    progress.say(f"teachers run on {device} in {precision}, as the store was made")
    added = (_teachers if config.teachers else _scales if config.scales else _views)(store, config, progress)
    part = extension.pending_part(store, added.manifest)
    if not part.manifest.arrays:
        extension.finish(store)
        progress.say(f"{config.cache} holds all of that already, nothing to do")
        return store
    check_space(part.manifest, len(part), config.cache, progress, resumes=extension.is_begun(part))
    with part.writing(), enough_memory(device):
        extension.begin(part, added.groups)
        runner = Runner(added.teachers, part.manifest, added.maps, _decoder(store), device, config.batch_size, progress)
        fit = with_flips if config.views else bases_of
        bases = {
            teacher.spec.name: fit(part, runner, teacher, progress, added.known.get(teacher.spec.name))
            for teacher in added.teachers
        }
        runner.compile_where_it_pays(len(part))
        fill(part, NoClaims(), Part(), runner, bases, progress)
        progress.say(cost_line(part))
        return extension.seal(part, added.manifest)


def _teachers(store: FeatureStore, config: ExtendConfig, progress: Progress) -> Addition:
    """New teachers at the store's scales."""
    manifest, layout = store.manifest, Layout.of(store.manifest)
    held = {entry.name: entry for entry in manifest.teachers}
    loaded = [_load(name, store, config, progress) for name in config.teachers]
    for teacher in loaded:
        if teacher.spec.name in held:
            _require_same(held[teacher.spec.name], teacher, store)
    fresh = [teacher for teacher in loaded if teacher.spec.name not in held]
    require_frame_size(fresh, layout.size)
    warn_of_validation(known_to(fresh), store.samples, progress)
    groups = [schema.teacher_group(name) for name in [*held, *(teacher.spec.name for teacher in fresh)]]
    if len(set(groups)) != len(groups):
        raise UsageError("two teachers would share a group of the store", where="--teachers", got=", ".join(config.teachers))
    extended = manifest.model_copy(update={
        "teachers": (*manifest.teachers, *(schema.teacher_entry(teacher, layout) for teacher in fresh)),
        "arrays": {**manifest.arrays, **schema.arrays(layout, fresh)},
    })  # fmt: skip
    maps = {t.spec.name: schema.maps_of_scales(t.spec, layout.size, layout.scales) for t in fresh}
    return Addition(extended, fresh, maps, groups[len(held) :], {})


def _scales(store: FeatureStore, config: ExtendConfig, progress: Progress) -> Addition:
    """New scales of every teacher; maps that are stored keep the basis that they have."""
    manifest, layout = store.manifest, Layout.of(store.manifest)
    everything = tuple(schema.scale_cells(layout.size, (*layout.scales, *config.scales)))
    wider = replace(layout, scales=everything)
    addition = Addition(manifest, [], {}, [], {})
    if set(everything) == set(layout.scales):
        return addition
    entries = []
    for entry in manifest.teachers:
        teacher = _load(entry.name, store, config, progress)
        _require_same(entry, teacher, store)
        spec = teacher.spec
        before, after = (schema.maps_of_scales(spec, layout.size, scales) for scales in (layout.scales, everything))
        if moved := [scale for number, held in before.items() for scale in held if scale not in after.get(number, ())]:
            raise UsageError(
                f"with these scales {entry.name} would store {', '.join(moved)} from another of its maps", where="--scales",
                got=", ".join(config.scales), remedy="polyp-difom extract with all scales and another --cache",
            )  # fmt: skip
        new = {n: fresh for n, held in after.items() if (fresh := tuple(s for s in held if s not in layout.scales))}
        addition.teachers.append(teacher)
        addition.maps[entry.name] = new
        addition.known[entry.name] = {n: _stored_basis(store, schema.basis_of(entry, held[0])) for n, held in before.items()}
        addition.groups.extend(schema.basis_group(entry.name, held[0]) for held in new.values())
        addition.groups.extend(f"{schema.teacher_group(entry.name)}/{scale}" for held in new.values() for scale in held)
        maps = tuple(
            MapEntry(
                scales=held, stride=spec.strides[n], native_channels=spec.channels[n],
                channels=min(layout.channels, spec.channels[n]),
            ) for n, held in new.items()
        )  # fmt: skip
        entries.append(entry.model_copy(update={"maps": (*entry.maps, *maps)}))
    extended = manifest.model_copy(update={
        "teachers": tuple(entries),
        "scales": schema.scale_cells(layout.size, everything),
        "arrays": manifest.arrays | schema.arrays(wider, addition.teachers) | manifest.arrays,
    })  # fmt: skip
    return replace(addition, manifest=extended)


def _views(store: FeatureStore, config: ExtendConfig, progress: Progress) -> Addition:
    """The flips that are lacking, of every teacher at every scale, as arrays of their own beside those of the other views."""
    manifest = store.manifest
    held, wanted = len(manifest.views), config.views or 0
    if wanted not in (2, 4):
        raise UsageError("no such number of views to add", where="--views", got=wanted, wanted="2 or 4")
    if wanted < held:
        raise UsageError(
            "the store holds more views", where="--views", got=wanted, wanted=f"at least {held}",
            remedy=f"polyp-difom distill --cache {store.location} --views {wanted} trains on the first ones",
        )  # fmt: skip
    fresh = VIEWS[held:wanted]
    addition = Addition(manifest, [], {}, [], {})
    if not fresh:
        return addition
    for entry in manifest.teachers:
        teacher = _load(entry.name, store, config, progress)
        _require_same(entry, teacher, store)
        maps = schema.maps_of_scales(teacher.spec, manifest.frame_size, tuple(manifest.scales))
        addition.teachers.append(teacher)
        addition.maps[entry.name] = maps
        addition.known[entry.name] = {n: schema.stored_basis(store, entry, scales) for n, scales in maps.items()}
        addition.groups.append(schema.added_key(schema.equivariance_group(entry.name), fresh))
    arrays = {
        schema.added_key(key, fresh): spec.model_copy(
            update={"shape": (len(fresh), *spec.shape[1:]), "continues": Continues(key=key, at=held)}
        )
        for key, spec in manifest.whole().items() if spec.chunk_dims
    }  # fmt: skip
    addition.groups.extend(arrays)
    extended = manifest.model_copy(
        update={"schema_version": 2, "views": (*manifest.views, *fresh), "arrays": {**manifest.arrays, **arrays}}
    )
    return replace(addition, manifest=extended)


def _load(name: str, store: FeatureStore, config: ExtendConfig, progress: Progress) -> Teacher:
    """One that the store holds sees frames at the size that it saw them at."""
    given = {full_name(key): value for key, value in config.weights.items()}
    sides = {entry.name: entry.input_size for entry in store.manifest.teachers}
    sides |= {full_name(key): value for key, value in config.input_sizes.items()}
    named, size = full_name(name), store.manifest.frame_size
    return load_teacher(named, given.get(named) or implied_weights(name), sides.get(named), progress.say, size)


def _require_same(entry: TeacherEntry, teacher: Teacher, store: FeatureStore) -> None:
    """CacheError where a teacher of the store is not the one that was loaded."""
    spec = teacher.spec
    stored = (entry.weights_digest, entry.input_size, entry.preprocessing)
    if (loaded := (weights_digest(teacher.encoder), spec.input_size, spec.preprocessing)) != stored:
        raise CacheError(
            f"the store's {entry.name} is another one", where=store.location,
            got=f"weights, input size, preprocessing: {loaded}", wanted=stored,
            remedy=f"give --weights {entry.name}=PATH and --input-size as the store was made",
        )  # fmt: skip


def _stored_basis(store: FeatureStore, group: str) -> Basis:
    record = store.read_constants(group)
    if record is None:
        raise CacheError(
            "the store lacks a basis", where=store.location.file(group), remedy="polyp-difom extract makes a new store"
        )
    return schema.basis_from(*record)


def _decoder(store: FeatureStore) -> Callable[[int], Arrays]:
    def decode(index: int) -> Arrays:
        return {schema.IMAGE: store.read(schema.IMAGE, np.array([index]))[0]}

    return decode
