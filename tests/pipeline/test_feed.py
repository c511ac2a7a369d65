"""The feed: pure epochs, and targets that belong to the frame as it is shown."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from polyp_difom.cache.errors import CacheError, DataError, UsageError
from polyp_difom.cache.store import FeatureStore
from polyp_difom.pipeline import augment, distributed, feed, schema, shelf, spectra
from polyp_difom.pipeline.feed import Batch, Feed, choose_teachers, target_specs
from polyp_difom.pipeline.objectives.protocol import Needs
from polyp_difom.pipeline.ondisk import OnDisk
from polyp_difom.pipeline.progress import Progress
from polyp_difom.pipeline.resample import area_resample
from polyp_difom.pipeline.shelf import Shelf
from polyp_difom.pipeline.subset import choose_subset

CPU = torch.device("cpu")
TEACHER = "toy:a"
KEYS = [(TEACHER, "s8"), (TEACHER, "s16")]
MAPS, SPECTRA = Needs(maps=True), Needs(spectra=True)
StoreMaker = Callable[..., FeatureStore]


def make_feed(store: FeatureStore, needs: Needs = MAPS, split: str = "train", seed: int = 0) -> Feed:
    return Feed(store, split, KEYS if needs.maps or needs.spectra else [], needs, CPU, seed, Shelf(store, CPU, Progress()))


def tensors(batches: list[Batch]) -> list[Tensor]:
    return [
        tensor
        for batch in batches
        for tensor in (batch.frames, batch.masks, *batch.targets.maps.values(), *batch.targets.spectra.values())
    ]


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@pytest.fixture
def plain_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves colours alone, so that frames can be compared with their maps."""
    monkeypatch.setattr(augment, "jitter_colour", lambda frames, colour: frames)


@pytest.mark.parametrize("affine", [False, True])
def test_an_epoch_is_a_function_of_seed_and_number_alone(make_store: StoreMaker, affine: bool) -> None:
    store = make_store()
    one, two = make_feed(store), make_feed(store)
    first = tensors(list(one.epoch(3, 4, seed=7, affine=affine)))
    list(two.epoch(0, 2, seed=1, affine=True))  # what ran before, and the global generator, must not matter
    next(iter(two.epoch(1, 4, seed=7, affine=affine)))
    torch.manual_seed(99)
    again = tensors(list(two.epoch(3, 4, seed=7, affine=affine)))
    assert len(first) == len(again) == 2 * 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for number, seed in ((4, 7), (3, 8)):
        other = tensors(list(one.epoch(number, 4, seed=seed, affine=affine)))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_shapes_and_ranges_of_a_batch(make_store: StoreMaker) -> None:
    batch = next(iter(make_feed(make_store()).epoch(0, 4, seed=0, affine=True)))
    assert batch.frames.shape == (4, 3, 64, 64)
    assert batch.masks.shape == (4, 1, 64, 64)
    assert 0 <= batch.frames.min() < batch.frames.max() <= 1
    assert set(batch.masks.unique().tolist()) == {0.0, 1.0}
    assert {key: tuple(maps.shape) for key, maps in batch.targets.maps.items()} == {
        KEYS[0]: (4, 3, 8, 8),
        KEYS[1]: (4, 3, 4, 4),
    }
    assert all(maps.dtype == torch.float32 for maps in batch.targets.maps.values())
    assert not batch.targets.spectra


@pytest.mark.parametrize("n_views", [1, 2, 4])
def test_a_target_is_the_map_of_the_very_view_that_is_shown(make_store: StoreMaker, plain_colour: None, n_views: int) -> None:
    held = make_feed(make_store(n_views=n_views))
    originals = held.images.float() / 255
    seen = set()
    for number in range(4):
        for batch in held.epoch(number, 4, seed=0, affine=False):
            for key, maps in batch.targets.maps.items():
                torch.testing.assert_close(maps, area_resample(batch.frames, maps.shape[-1]), rtol=0, atol=2e-3, msg=str(key))
            assert torch.equal(batch.masks, (batch.frames[:, :1] * 255 > 127.5).float())
            for frame in batch.frames:
                seen |= {v for v, axes in enumerate(held.axes) if (originals.flip(axes) == frame).flatten(1).all(1).any()}
    assert seen == set(range(n_views))


def test_an_affine_moves_frame_mask_and_map_together(make_store: StoreMaker, plain_colour: None) -> None:
    held = make_feed(make_store())
    originals = held.images.float() / 255
    moved = 0
    for number in range(4):
        for batch in held.epoch(number, 4, seed=0, affine=True):
            for row, frame in enumerate(batch.frames):
                maps = batch.targets.maps[KEYS[0]][row]
                assert correlation(area_resample(frame, 8), maps) > 0.97
                assert ((frame[0] * 255 > 127.5) == batch.masks[row, 0].bool()).float().mean() > 0.97
                nearest = min((originals.flip(axes) - frame).abs().amax((1, 2, 3)).min().item() for axes in held.axes)
                moved += nearest > 1e-3
    assert 8 < moved < 24  # of 32


def test_without_affine_every_pixel_is_one_of_the_store(make_store: StoreMaker, plain_colour: None) -> None:
    held = make_feed(make_store(n_views=1))
    frames = torch.cat([batch.frames for batch in held.epoch(0, 4, seed=0, affine=False)])
    originals = held.images.float() / 255
    assert sorted(int((originals == frame).flatten(1).all(1).nonzero()) for frame in frames) == list(range(8))


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_never_gives_a_frame_its_own_map(make_store: StoreMaker, plain_colour: None, seed: int) -> None:
    held = make_feed(make_store(n_views=1), Needs(maps=True, shuffled=True), seed=seed)
    own: dict[int, int] = {}
    for number in range(2):
        for batch in held.epoch(number, 4, seed=0, affine=False):
            for frame, maps in zip(batch.frames, batch.targets.maps[KEYS[0]], strict=True):
                distances = (area_resample(held.images.float() / 255, 8) - maps).flatten(1).norm(dim=1)
                shown = int((held.images.float() / 255 - frame).flatten(1).norm(dim=1).argmin())
                taught = int(distances.argmin())
                assert distances[taught] < 0.1
                assert taught != shown
                assert own.setdefault(shown, taught) == taught  # the same wrong one every epoch
    assert sorted(own) == sorted(own.values()) == list(range(8))


@pytest.mark.parametrize("n", [2, 3, 8, 101])
def test_a_derangement_has_no_fixed_point(n: int) -> None:
    for seed in range(20):
        wrong = feed._derangement(n, seed)
        assert sorted(wrong.tolist()) == list(range(n))
        assert not (wrong == torch.arange(n)).any()


def test_spectra_are_those_of_the_shown_view_whether_stored_in_full_or_low(make_store: StoreMaker, plain_colour: None) -> None:
    full, low = (make_feed(make_store(kind), SPECTRA) for kind in ("full", "low"))
    pairs = list(zip(full.epoch(0, 4, seed=0, affine=False), low.epoch(0, 4, seed=0, affine=False), strict=True))
    assert len(pairs) == 2
    for one, two in pairs:
        assert torch.equal(one.frames, two.frames)
        assert not one.targets.maps
        for key in KEYS:
            cells = one.targets.spectra[key].shape[-2]
            assert one.targets.spectra[key].shape == (4, 3, cells, cells // 2 + 1)
            expected = spectra.spectrum(area_resample(one.frames, cells))
            torch.testing.assert_close(one.targets.spectra[key], expected, rtol=2e-3, atol=5e-3)
            torch.testing.assert_close(two.targets.spectra[key], expected, rtol=2e-3, atol=5e-3)


def test_a_control_sees_the_same_frames_as_the_taught(make_store: StoreMaker) -> None:
    store = make_store()
    taught, control = make_feed(store), make_feed(store, Needs())
    for one, two in zip(taught.epoch(1, 4, seed=0, affine=True), control.epoch(1, 4, seed=0, affine=True), strict=True):
        assert torch.equal(one.frames, two.frames)
        assert torch.equal(one.masks, two.masks)
        assert not two.targets.maps


def test_only_full_batches_are_given_unless_there_is_but_one(make_store: StoreMaker) -> None:
    held = make_feed(make_store())
    assert [len(batch.frames) for batch in held.epoch(0, 3, seed=0, affine=False)] == [3, 3]
    assert [len(batch.frames) for batch in held.epoch(0, 16, seed=0, affine=False)] == [8]


def test_plain_frames_come_in_order_and_untouched(make_store: StoreMaker) -> None:
    store = make_store()
    batches = list(make_feed(store, Needs(), "val").plain(16))
    assert len(batches) == 1
    stored = torch.from_numpy(store.read(schema.IMAGE))[8:]
    assert torch.equal((batches[0].frames * 255).round().byte(), stored)
    assert torch.equal(batches[0].masks[:, 0].byte(), torch.from_numpy(store.read(schema.MASK))[8:])


def test_a_split_that_the_store_lacks_is_an_error(make_store: StoreMaker) -> None:
    with pytest.raises(DataError, match="no test frames"):
        make_feed(make_store(), split="test")


def test_a_teacher_that_the_store_lacks_is_refused_with_those_it_holds(make_store: StoreMaker) -> None:
    store = make_store()
    assert choose_teachers(store, None) == choose_teachers(store, (TEACHER,)) == (TEACHER,)
    with pytest.raises(UsageError, match="'sam:vit_b'") as caught:
        choose_teachers(store, (TEACHER, "sam:vit_b"))
    assert TEACHER in str(caught.value.details["wanted"])


@pytest.mark.parametrize("spelt", ["toy:runs/of/may/a", "toy:b", "toi"])
def test_a_teacher_of_nearly_that_name_or_named_by_its_folder_is_offered(spelt: str, make_store: StoreMaker) -> None:
    store = make_store()
    with pytest.raises(UsageError, match="did you mean toy:a") as caught:
        choose_teachers(store, (spelt,))
    assert f"polyp-difom cache extend {store.location} --teachers {spelt}" in caught.value.message


def holding(*teachers: str) -> Any:
    entries = [SimpleNamespace(name=name) for name in teachers]
    return SimpleNamespace(location="a.zarr", manifest=SimpleNamespace(teachers=entries))


@pytest.mark.parametrize(
    ("wanted", "full"),
    [
        (("sam", "dinov2"), ("sam:vit_b", "dinov2:base@9+12")),
        (("dinov2@9+12", "sam:vit_b", "sam"), ("dinov2:base@9+12", "sam:vit_b")),
        (("medsam",), ("medsam@mask",)),
        (("litemedsam", "run@mask"), ("litemedsam", "run:a+b@mask")),
        (("run:a",), ("run:a",)),
    ],
)
def test_a_family_stands_for_the_one_teacher_of_it_that_the_store_holds(wanted: tuple[str, ...], full: tuple[str, ...]) -> None:
    store = holding("sam:vit_b", "dinov2:base@9+12", "litemedsam", "medsam@mask", "run:a", "run:a+b@mask")
    assert choose_teachers(store, wanted) == full
    with pytest.raises(UsageError, match="several teachers 'run'") as caught:
        choose_teachers(store, ("sam", "run"))
    assert caught.value.details["wanted"] == "one of: run:a, run:a+b@mask"


def test_target_specs_tell_grids_strides_and_deviations(make_store: StoreMaker) -> None:
    specs = target_specs(make_store(), (TEACHER,))
    facts = {key: (spec.channels, spec.cells, spec.stride, spec.std) for key, spec in specs.items()}
    assert facts == {KEYS[0]: (3, 8, 8, 0.5), KEYS[1]: (3, 4, 16, 0.5)}


def test_a_store_without_its_basis_is_refused(make_store: StoreMaker) -> None:
    store = make_store()
    assert store.location.path is not None
    shutil.rmtree(store.location.path / schema.basis_group(TEACHER))
    with pytest.raises(CacheError, match="basis of teacher 'toy:a' is missing"):
        target_specs(FeatureStore.open(store.location.path), (TEACHER,))


@pytest.mark.parametrize("needs", [MAPS, SPECTRA, Needs(maps=True, shuffled=True)])
def test_a_store_that_memory_does_not_hold_is_read_batch_by_batch_with_the_same_values(
    make_store: StoreMaker, monkeypatch: pytest.MonkeyPatch, needs: Needs
) -> None:
    store = make_store()
    held = tensors(list(make_feed(store, needs).epoch(0, 4, seed=7, affine=needs.maps)))
    monkeypatch.setattr(shelf, "free_memory", lambda device: 1)
    on_disk = make_feed(store, needs)
    assert isinstance(on_disk.images, OnDisk)
    read = tensors(list(on_disk.epoch(0, 4, seed=7, affine=needs.maps)))
    assert all(torch.equal(a, b) for a, b in zip(held, read, strict=True))
    assert len(read) == 2 * 4
    plain = make_feed(store, Needs(), "val")
    assert [len(batch.frames) for batch in plain.plain(2)] == [2]


def test_fewer_channels_of_a_store_on_disk_are_those_of_one_in_memory(
    make_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    subset = choose_subset(store, (TEACHER,), channels=2, views=2)

    def batches() -> list[Tensor]:
        narrow = Feed(store, "train", KEYS, MAPS, CPU, 0, Shelf(store, CPU, Progress()), subset)
        return tensors(list(narrow.epoch(0, 4, seed=7, affine=False)))

    held = batches()
    monkeypatch.setattr(shelf, "free_memory", lambda device: 1)
    for a, b in zip(held, batches(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)
    assert held[2].shape[1] == 2


def test_more_views_than_were_read_before_come_from_disk_where_memory_has_run_out(
    make_store: StoreMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    key, index = schema.embedding_key(*KEYS[0]), (torch.tensor([0, 1]), torch.tensor([1, 1]))
    wanted = Shelf(store, CPU, Progress()).take("train", [key])[key][index]
    filled = Shelf(store, CPU, Progress())
    filled.take("train", [key], views=1)
    monkeypatch.setattr(shelf, "free_memory", lambda device: 1)
    assert torch.equal(filled.take("train", [key], views=2)[key][index], wanted)


class TwoTeachers(Feed):
    """A feed whose second scale counts as a second teacher's."""

    def __init__(self, store: FeatureStore, needs: Needs = MAPS):
        super().__init__(store, "train", KEYS, needs, CPU, 0, Shelf(store, CPU, Progress()))
        self.maps = {(f"toy:{name}", key[1]): held for name, (key, held) in zip("ab", self.maps.items(), strict=True)}


def test_dropped_teachers_leave_one_at_least_and_the_frames_as_they_are(make_store: StoreMaker) -> None:
    held, seen = TwoTeachers(make_store()), []
    for number in range(20):
        whole, less = (list(held.epoch(number, 2, seed=0, affine=True, drop=drop)) for drop in (0.0, 0.5))
        for one, two in zip(whole, less, strict=True):
            assert torch.equal(one.frames, two.frames)
            assert len(one.targets.maps) == 2
            assert all(torch.equal(value, one.targets.maps[key]) for key, value in two.targets.maps.items())
            seen.append(tuple(two.targets.maps))
    share = {kept: seen.count(kept) / len(seen) for kept in set(seen)}
    assert set(map(len, share)) == {1, 2}
    assert len(share) == 3
    assert share[tuple(held.maps)] == pytest.approx(0.25, abs=0.15)
    again = [
        tuple(batch.targets.maps) for number in range(20) for batch in held.epoch(number, 2, seed=0, affine=True, drop=0.5)
    ]
    assert again == seen


def test_processes_that_share_a_batch_drop_the_same_teachers(make_store: StoreMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    held = TwoTeachers(make_store())
    whole = list(held.epoch(3, 2, seed=0, affine=True, drop=0.6))
    monkeypatch.setattr(distributed, "world", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(held.epoch(3, 2, seed=0, affine=True, drop=0.6)))
    assert len({len(batch.targets.maps) for batch in whole}) == 2
    for together, *each in zip(whole, *shares, strict=True):
        for value, *own in zip(tensors([together]), *(tensors([batch]) for batch in each), strict=True):
            torch.testing.assert_close(torch.cat(own), value)


def test_numbers_are_sent_once_for_all_arrays_of_a_batch(make_store: StoreMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Tensor] = []
    real = Feed._sent
    monkeypatch.setattr(Feed, "_sent", lambda self, tensor: real(self, sent.append(tensor) or tensor))
    counts = []
    for needs in (Needs(), MAPS):
        sent.clear()
        next(iter(make_feed(make_store(), needs).epoch(0, 4, seed=0, affine=True)))
        counts.append(len(sent))
    assert counts[0] == counts[1] <= 8
    assert all(tensor.numel() <= 4 * 6 for tensor in sent)


def test_without_colour_the_pixels_are_the_stores_and_all_else_is_drawn_alike(make_store: StoreMaker) -> None:
    held = make_feed(make_store())
    for one, two in zip(*(held.epoch(0, 4, seed=0, affine=False, colour=colour) for colour in (True, False)), strict=True):
        assert torch.equal(one.masks, two.masks)
        assert not torch.equal(one.frames, two.frames)
        assert torch.equal((two.frames * 255).round() / 255, two.frames)


def test_masks_are_looked_at_until_one_has_a_lesion(make_store: StoreMaker) -> None:
    held = make_feed(make_store())
    assert not held.all_empty()
    held.masks = torch.zeros_like(held.masks)
    assert held.all_empty()
    held.masks[-1, 5, 5] = 1
    assert not held.all_empty()


def test_a_batch_is_split_with_its_targets(make_store: StoreMaker) -> None:
    for needs in (MAPS, SPECTRA):
        batch = next(iter(make_feed(make_store(), needs).epoch(0, 5, seed=0, affine=False)))
        parts = batch.split(2)
        assert [len(part.frames) for part in parts] == [2, 2, 1]
        for whole, pieces in zip(tensors([batch]), zip(*(tensors([part]) for part in parts), strict=True), strict=True):
            assert torch.equal(whole, torch.cat(pieces))


def test_a_process_without_a_validation_frame_gets_no_batch(make_store: StoreMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    val = make_feed(make_store(), Needs(), "val")
    monkeypatch.setattr(distributed, "world", lambda: len(val) + 1)
    monkeypatch.setattr(distributed, "rank", lambda: len(val))
    assert list(val.plain(2)) == []
