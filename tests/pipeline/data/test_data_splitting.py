from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest

from polyp_difom.cache.errors import DataError, UsageError
from polyp_difom.pipeline.data.pairing import Pair
from polyp_difom.pipeline.data.splitting import assign_splits, merge, select


def make(stems, dataset: str = "clinic", split: str | None = None) -> list[Pair]:
    return [Pair(f"{dataset}/{stem}", Path(f"{stem}.jpg"), Path(f"{stem}.png"), dataset, split) for stem in stems]


def published(dataset: str, split: str) -> list[str]:
    return (files("polyp_difom.pipeline.data") / "splits" / f"{dataset}_{split}.txt").read_text().split()


def counts(pairs: list[Pair]) -> dict[str | None, int]:
    return dict(Counter(pair.split for pair in pairs))


def split_of(pairs: list[Pair]) -> dict[str, str | None]:
    return {pair.id: pair.split for pair in pairs}


@pytest.mark.parametrize(("dataset", "train", "test"), [("kvasir-seg", 900, 100), ("cvc-clinicdb", 550, 62)])
@pytest.mark.parametrize("policy", ["auto", "pranet"])
def test_published_stems_take_pranets_split(dataset: str, train: int, test: int, policy: str) -> None:
    stems = published(dataset, "train") + published(dataset, "test")
    pairs, reason = assign_splits(make(stems, dataset), policy)
    assert counts(pairs) == {"train": train - train // 10, "val": train // 10, "test": test}
    assert {pair.stem for pair in pairs if pair.split == "test"} == set(published(dataset, "test"))
    assert "PraNet's split" in reason
    assert "\n" not in reason


def test_a_partly_listed_data_set_asks_for_a_choice() -> None:
    pairs = make([*published("cvc-clinicdb", "train")[:20], "mine"], "cvc-clinicdb")
    for policy in ("auto", "pranet"):
        with pytest.raises(DataError, match=r"not in PraNet's split(.|\n)*1: mine"):
            assign_splits(pairs, policy)
    assert "as asked" in assign_splits(pairs, "seeded")[1]


def test_pranets_split_is_refused_for_a_set_it_does_not_list() -> None:
    with pytest.raises(DataError, match=r"does not list(.|\n)*clinic"):
        assign_splits(make(range(20)), "pranet")


def test_splits_fixed_by_the_layout_stay_and_val_comes_from_train() -> None:
    pairs = [*make(range(40), "pranet-train", "train"), *make(range(9), "cvc-300", "test")]
    for policy in ("auto", "pranet"):
        got, reason = assign_splits(pairs, policy)
        assert counts(got) == {"train": 36, "val": 4, "test": 9}
        assert {pair.dataset for pair in got if pair.split == "test"} == {"cvc-300"}
        assert "fixed by the data set's layout" in reason


def test_a_layout_that_names_val_is_not_carved_again() -> None:
    pairs = [*make(range(30), split="train"), *make(range(30, 33), split="val")]
    assert counts(assign_splits(pairs)[0]) == {"train": 30, "val": 3}


def test_a_test_only_set_needs_no_train() -> None:
    assert counts(assign_splits(make(range(3), split="test"))[0]) == {"test": 3}


def test_other_sets_are_split_by_a_seeded_hash_and_the_reason_says_so() -> None:
    pairs, reason = assign_splits(make(range(100)))
    assert counts(pairs) == {"train": 81, "val": 9, "test": 10}
    assert [pair.stem for pair in pairs] == [str(stem) for stem in range(100)]
    assert "seeded split (seed 0) because no published split" in reason
    assert "81 train, 9 val, 10 test" in reason


def test_the_seeded_split_depends_on_the_seed_only() -> None:
    pairs = make(range(100))
    once = split_of(assign_splits(pairs)[0])
    assert split_of(assign_splits(pairs[::-1])[0]) == once
    assert split_of(assign_splits(pairs, seed=1)[0]) != once


def test_adding_frames_moves_few_others() -> None:
    before = split_of(assign_splits(make(range(1000)))[0])
    after = split_of(assign_splits(make(range(1050)))[0])
    moved = [name for name in before if before[name] != after[name]]
    assert len(moved) < 30


def test_merging_before_or_after_splitting_is_the_same() -> None:
    first, second = make(range(50), "a"), make(range(70), "b")
    together = split_of(assign_splits([*first, *second])[0])
    assert together == split_of(assign_splits(first)[0]) | split_of(assign_splits(second)[0])


def test_fractions_of_zero_leave_a_split_out() -> None:
    assert counts(assign_splits(make(range(10)), val_fraction=0, test_fraction=0)[0]) == {"train": 10}


def test_small_sets_get_at_least_one_frame_of_each_or_an_error() -> None:
    assert counts(assign_splits(make(range(3)))[0]) == {"train": 1, "val": 1, "test": 1}
    with pytest.raises(DataError, match="too few frames"):
        assign_splits(make(range(2)))


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 3])
def test_fractions_outside_zero_to_one_are_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match="val_fraction"):
        assign_splits(make(range(10)), val_fraction=fraction)
    with pytest.raises(UsageError, match="test_fraction"):
        assign_splits(make(range(10)), test_fraction=fraction)


@pytest.fixture
def table(tmp_path: Path):
    def write(text: str) -> str:
        (tmp_path / "split.csv").write_text(text, encoding="utf-8-sig")
        return str(tmp_path / "split.csv")

    return write


def test_a_csv_names_every_split(table) -> None:
    pairs, reason = assign_splits(make("abcd"), table("stem,split\na,train\nb,val\nc,test\nd,train\n"))
    assert [pair.split for pair in pairs] == ["train", "val", "test", "train"]
    assert "split.csv" in reason


def test_a_csv_without_val_gets_it_from_train(table) -> None:
    rows = "".join(f"{stem},{'test' if stem < 5 else 'train'}\n" for stem in range(25))
    pairs, _ = assign_splits(make(range(25)), table("stem,split\n" + rows))
    assert counts(pairs) == {"train": 18, "val": 2, "test": 5}
    assert {pair.stem for pair in pairs if pair.split == "test"} == set("01234")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem,split\na,train\nb,valid\n", "unknown splits(.|\n)*b,valid"),
        ("stem,split\na,train\n", "frames without a row(.|\n)*1: b"),
        ("stem,split\na,train\nb,test\nc,test\n", "without a frame(.|\n)*1: c"),
        ("stem,split\na,train\nb,test\nb,train\n", "met twice(.|\n)*1: b"),
        ("stem,split\na,train\nb\n", "unknown splits(.|\n)*b"),
        ("stem,split\na,train\nb,test,x\n", "unknown splits(.|\n)*b,too many cells"),
        ("name,split\na,train\nb,test\n", "wrong columns(.|\n)*stem,split"),
        ("", "wrong columns"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused(table, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        assign_splits(make("ab"), table(text))


def test_a_csv_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="cannot read the split file"):
        assign_splits(make("ab"), str(tmp_path / "split.csv"))


def test_a_stem_shared_by_two_data_sets_cannot_come_from_a_csv(table) -> None:
    with pytest.raises(DataError, match="share stems"):
        assign_splits([*make("a", "x"), *make("a", "y")], table("stem,split\na,train\n"))


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no such split(.|\n)*auto, pranet, seeded"):
        assign_splits(make("ab"), "pranett")


@pytest.fixture
def divided() -> list[Pair]:
    return assign_splits(make(range(100)))[0]


def test_select_keeps_splits_in_order(divided: list[Pair]) -> None:
    assert select(divided, {"test"}) == [pair for pair in divided if pair.split == "test"]
    assert select(divided, {"train", "val"}, 1000) == [pair for pair in divided if pair.split != "test"]


def test_a_limit_keeps_the_ratio_and_the_order(divided: list[Pair]) -> None:
    kept = select(divided, {"train", "val"}, 20)
    assert counts(kept) == {"train": 18, "val": 2}
    assert kept == [pair for pair in divided if pair in kept]


def test_a_small_limit_keeps_one_val_and_grows_by_adding(divided: list[Pair]) -> None:
    kept = select(divided, {"train", "val"}, 3)
    assert counts(kept) == {"train": 2, "val": 1}
    assert set(kept) <= set(select(divided, {"train", "val"}, 30))


@pytest.mark.parametrize(("limit", "splits"), [(0, {"test"}), (-4, {"train"}), (1, {"train", "val"}), (0, {"nothing"})])
def test_a_limit_that_leaves_nothing_is_refused(divided: list[Pair], limit: int, splits: set[str]) -> None:
    with pytest.raises(UsageError, match=f"limit(.|\n)*got: +{limit}"):
        select(divided, splits, limit)


def test_no_frames_to_train_on_is_an_error() -> None:
    pairs = make(range(3), split="test")
    with pytest.raises(DataError, match=r"no frames to train on(.|\n)*3 test"):
        select(pairs, {"train", "test"})
    with pytest.raises(DataError, match="no frames in these splits"):
        select(pairs, {"val"})


def test_merging_refuses_equal_ids() -> None:
    assert len(merge([make("ab", "x"), make("ab", "y")])) == 4
    with pytest.raises(DataError, match="2: x/a, x/b"):
        merge([make("ab", "x"), make("ab", "x")])
