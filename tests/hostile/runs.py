"""Run folders of strangers, each with something hostile in one of its files: what reads them may refuse them, and no more."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from polyp_difom.pipeline.data.synthetic import write_dataset

from .corpus import LAUGHS
from .networks import DEEP, checkpoint
from .spoiling import Change, cells, edited, elsewhere, forgotten, linked, renamed, row, writing

SIDE, STUDENT = 32, "unet:4"
MARK = "injected"
EVIL = f"\"'></title></text><script>{MARK}()</script><b id={MARK} onclick={MARK}()><img src=//{MARK}.test/x>&{{7777*7777}}{{{{7777*7777}}}}\u202e\x1b[31m"
"""Whatever a page, a terminal or a template could take for more than text."""
FORMULA = "=cmd|' /C calc'!A0"


@dataclass(frozen=True)
class Stranger:
    """One folder.

    Attributes:
        kind: "run" or "sweep"; name: what is hostile; change: makes it so in a copy of a whole one.
        folder: what the folder is called.
    """

    kind: str
    name: str
    change: Change
    folder: str = "stranger"


def header(**changes: object) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    provenance = {
        "datasets": [{"name": "synthetic", "layout": "pairs", "frames": 4}],
        "teachers": [{"name": "dinov2:small", "licence": "Apache-2.0", "contamination": "likely", "weights_digest": "0" * 64}],
    }
    return {
        "cache": "cache/none.zarr", "student": STUDENT, "objective": "multiscale", "teachers": ["dinov2:small"], "epochs": 2, "batch_size": 4,
        "learning_rate": 1e-3, "weight_decay": 1e-2, "distill_weight": 1.0, "affine": True, "seed": 0, "device": "cpu", "precision": "float32",
        "signature": "0" * 64, "frame_size": SIDE, "split": {"policy": "auto", "seed": 0, "val_fraction": 0.1}, "epoch": 2, "val_dice": 0.5,
        "provenance": provenance, **changes,
    }  # fmt: skip


def epochs(**changes: object) -> list[dict[str, Any]]:
    """Figures of two epochs; the second with `changes`."""
    agreement = {"cosine": 0.5, "explained": 0.2, "target_variance": 0.9}
    taught = {f"dinov2-small/s16/bottleneck/{name}": value for name, value in agreement.items()}
    rows: list[dict[str, Any]] = [
        {"epoch": n, "val_dice": 0.2 * n, "seconds": 1.0, "segmentation": 1.0 / n, **taught} for n in (1, 2)
    ]
    return [rows[0], rows[1] | changes]


def whole_run(folder: Path) -> Path:
    """A run that one could have trained, made by hand."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("best", "last"):
        (folder / f"checkpoints/{name}.safetensors").write_bytes(checkpoint(header()))
    config = {
        key: value for key, value in header().items() if key not in ("split", "provenance", "epoch", "val_dice", "frame_size")
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    packages = {"polyp-difom": "1", "torch": "2"}
    environment = {"python": "3.12", "platform": "Linux", "cpus": 2, "gpus": [], "git": None, "packages": packages}
    (folder / "env.json").write_text(json.dumps(environment))
    (folder / "samples.csv").write_text(f"id,pixel_sha256,split\nsynthetic/x,{'0' * 64},train\n")
    (folder / "metrics.jsonl").write_text(lines(epochs()))
    timing = {"size": SIDE, "rows": [{"runtime": "eager", "batch": 1, "median_ms": 2.0}], "device": "cpu", "threads": 1}
    (folder / "bench.json").write_text(json.dumps(timing))
    (folder / "overlays").mkdir()
    return folder


def frames(folder: Path) -> Path:
    """A few frames to score and predict."""
    write_dataset(folder, count=4, size=SIDE)
    return folder


def lines(rows: list[Any]) -> str:
    """JSON, a line a row; NaN as Python writes it."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def runs(outside: Path, executed: Path) -> Iterator[Stranger]:
    """All of them; `outside` holds what nobody may open, "named" beside it what a record may point to, but no page may show.

    Args:
        executed: is made where code is run.
    """
    for name, change in {
        **_configurations(outside, executed), **_figures(), **_facts(), **_checkpoints(outside), **_links(outside),
    }.items():  # fmt: skip
        yield Stranger("run", name, change)
    for number, name in enumerate(
        (
            f"a{EVIL}".replace("/", "_"),
            "a\nb",
            "\u202egnp",
            "-rf",
            FORMULA.replace("/", "_"),
            "{{7777*7777}}",
            os.fsdecode(b"\xff"),
        )
    ):
        yield Stranger("run", f"folder name {number}", lambda run: None, name)


def _configurations(outside: Path, executed: Path) -> dict[str, Change]:
    texts = {
        "python tag": f"student: !!python/object/apply:os.mkdir [{executed}]\n", "python module": "student: !!python/module:injected\n",
        "laughs": LAUGHS, "deep": "[" * 50_000, "list": "[]\n", "large": "x" * (2 << 20), "date": "seed: 2001-99-99\n", "zero": "\0", "nothing": "",
    }  # fmt: skip
    held: dict[str, Any] = {
        "cache absolute": {"cache": str(outside.with_name("named") / "store.zarr")}, "cache upwards": {"cache": "../named/store.zarr"}, "cache null": {"cache": None},
        "cache remote": {"cache": "s3://injected/store.zarr"}, "cache nested": {"cache": [[EVIL]]}, "texts": dict.fromkeys(header(), EVIL), "numbers": {1: 2},
    }  # fmt: skip
    found = {name: text.encode() for name, text in texts.items()} | {"not UTF-8": b"\xff\xfe"}
    found |= {name: yaml.safe_dump(config).encode() for name, config in held.items()}
    return {f"config.yaml {name}": writing("config.yaml", raw) for name, raw in found.items()}


def _figures() -> dict[str, Change]:
    """metrics.jsonl, and what an evaluation left."""
    inf, nan = float("inf"), float("nan")
    rows: dict[str, object] = {
        "nan": epochs(val_dice=nan), "infinite": epochs(segmentation=inf), "huge": epochs(segmentation=1e308, val_dice=-1e308), "list": epochs(val_dice=[1]), "text": epochs(val_dice=EVIL),
        "epoch text": epochs(epoch=EVIL), "epoch huge": epochs(epoch=10**400), "epoch missing": [{"val_dice": 0.1}], "other": [1, "a", None], "null": epochs(val_dice=None), "empty": [{}, {}],
        "keys": epochs(**{f"{EVIL.replace('/', '|')}/s16/x/cosine": 1.0}), "half agreement": epochs(**{"x/s16/y/cosine": 1.0}), "loss name": epochs(**{EVIL.replace("/", "|"): 1.0}),
        "nested": epochs(segmentation={"a": {"b": 1}}), "true": epochs(val_dice=True, epoch=False), "agreement text": epochs(**{"dinov2-small/s16/bottleneck/cosine": EVIL}),
        "backwards": epochs()[::-1], "equal epochs": epochs(epoch=1),
    }  # fmt: skip
    texts = {f"metrics.jsonl {name}": lines(value).encode() for name, value in rows.items()}  # type: ignore[arg-type]
    texts |= {"metrics.jsonl deep": DEEP + b"\n", "metrics.jsonl exponent": b'{"epoch": 1, "val_dice": 1e999, "seconds": 1}\n'}
    texts |= {
        "metrics.jsonl digits": b'{"epoch": ' + b"1" * 6000 + b"}\n",
        "metrics.jsonl not UTF-8": b"\xff\n",
        "metrics.jsonl zero": b"\0\n",
    }
    changes = {name: writing("metrics.jsonl", raw) for name, raw in texts.items()}
    changes["metrics.jsonl sparse"] = lambda run: os.truncate(run / "metrics.jsonl", 1 << 34)
    for name, values in {"text": {"dice": EVIL}, "nan": {"dice": "nan"}, "infinite": {"hd95": "inf"}, "huge": {"dice": "1e308", "hd95": "1e308"}, "id": {"id": EVIL}, "id upwards": {"id": "../../x"},
                         "formula": {"id": FORMULA}, "set": {"dataset": EVIL}, "protocol": {"protocol": EVIL}, "frames": {"frames": "-1"}, "digits": {"height": "9" * 6000}}.items():  # fmt: skip
        changes[f"scores {name}"] = cells("evaluation/per-image/*.csv", values)
    for name, held in {"protocol": {"protocol": EVIL}, "set": {"dataset": EVIL}, "nan": {"mdice": nan}, "infinite": {"dice_interval": [-inf, inf]}, "huge": {"mdice": 1e308, "images": 10**300},
                       "bands": {"dice_by_size": [{"name": EVIL, "low": 0, "high": 1, "images": 1, "mdice": 0.5}]}, "calibration": {"calibration": {"pixels": 1, "ece": nan, "rows": [[1]]}},
                       "text": {"miou": EVIL}, "images": {"images": -3}}.items():  # fmt: skip
        changes[f"summary {name}"] = edited("evaluation/per-image/*.json", held)
    for name, raw in {"deep": DEEP, "list": b"[]", "empty": b"", "not UTF-8": b"\xff"}.items():
        changes[f"summary {name}"] = writing("evaluation/per-image/*.json", raw)
    for name in (EVIL, "a\nb", "..-x", FORMULA):
        changes[f"set's file {name[:9]!r}"] = renamed("evaluation/per-image", f"{name}-test".replace("/", "_"))
    changes["protocol's folder"] = lambda run: (run / "evaluation/per-image").rename(
        run / f"evaluation/{EVIL.replace('/', '_')}"
    )
    return changes


def _facts() -> dict[str, Change]:
    """What a run says of its making beside its figures."""
    changes: dict[str, Change] = {}
    gpus = {"gpus": [EVIL], "git": EVIL, "platform": EVIL, "python": EVIL, "packages": {EVIL: EVIL}}
    for name, held in {"texts": gpus, "packages list": {"packages": [EVIL]}, "gpus number": {"gpus": 3}, "gpus nested": {"gpus": [[EVIL]]}, "git nested": {"git": [EVIL]}}.items():  # fmt: skip
        changes[f"env.json {name}"] = edited("env.json", held)
    timings: dict[str, dict[str, Any]] = {
        "device": {"device": EVIL, "threads": EVIL}, "zero": {"rows": [{"runtime": "eager", "batch": 1, "median_ms": 0}]}, "nan": {"rows": [{"runtime": "eager", "batch": 1, "median_ms": float("nan")}]},
        "negative": {"rows": [{"runtime": "eager", "batch": 1, "median_ms": -1}]}, "huge": {"rows": [{"runtime": "eager", "batch": 1, "median_ms": 1e308}]}, "rows": {"rows": EVIL},
    }  # fmt: skip
    changes |= {f"bench.json {name}": edited("bench.json", held) for name, held in timings.items()}
    targets: dict[str, dict[str, Any]] = {
        "kind": {"kind": EVIL}, "kind list": {"kind": []}, "path": {"path": EVIL}, "path list": {"path": [1]}, "digest": {"sha256": [EVIL]}, "digest text": {"sha256": EVIL}, "parameters": {"parameters": EVIL},
        "parameters negative": {"parameters": -5}, "parameters huge": {"parameters": 10**400}, "header empty": {"header": {}}, "header texts": {"header": dict.fromkeys(header(), EVIL)},
        "header lists": {"header": {key: [[EVIL]] for key in header()}}, "header giant": {"header": header(student="unet:1000000", frame_size=4096)}, "name": {"name": EVIL},
        "student": {"header": header(student=EVIL)}, "objective": {"header": header(objective=EVIL)}, "teachers": {"header": header(teachers=[EVIL])},
        "provenance": {"header": header(provenance={"teachers": [{"name": EVIL}], "datasets": [{"name": EVIL}]})},
    }  # fmt: skip
    changes |= {f"target.json {name}": edited("evaluation/target.json", held) for name, held in targets.items()}
    for file in ("env.json", "bench.json", "evaluation/target.json"):
        for name, raw in {
            "deep": DEEP,
            "list": b"[]",
            "empty": b"",
            "not UTF-8": b"\xff",
            "large": b'["' + b"x" * (40 << 20) + b'"]',
        }.items():
            changes[f"{Path(file).name} {name}"] = writing(file, raw)
    head = "id,pixel_sha256,split\n"
    for name, text in {"formulas": f"{head}{FORMULA},{FORMULA},{FORMULA}\n", "texts": head + row([EVIL] * 3), "wide": head + "a" * 200_000 + ",b,c\n", "few": head + "a\n", "zero": head + "\0,\0,\0\n", "empty": ""}.items():  # fmt: skip
        changes[f"samples.csv {name}"] = writing("samples.csv", text.encode())
    changes["samples.csv not UTF-8"] = writing("samples.csv", head.encode() + b"\xff,\xff,\xff\n")
    results = "dataset,split,protocol,images,mdice,miou,left_out\n"
    for name, text in {"texts": results + row([EVIL, EVIL, EVIL, 3, 0.5, 0.5, EVIL]), "formulas": results + row([FORMULA] * 7), "nan": results + row([1, 2, 3, 4, "nan", "inf", 1e308]), "wide": "a" * 200_000, "more": results + "1," * 20 + "\n"}.items():  # fmt: skip
        changes[f"results.csv {name}"] = writing("results.csv", text.encode())
    changes["results.csv not UTF-8"] = writing("results.csv", b"dataset\n\xff\n")
    changes["results.json texts"] = writing("results.json", json.dumps({EVIL: [EVIL]}).encode())
    return changes


def _checkpoints(outside: Path) -> dict[str, Change]:
    """Headers that lie; a whole network behind each."""
    one = header()["provenance"]["teachers"][0]
    headers: dict[str, dict[str, Any]] = {
        "texts": dict.fromkeys(("objective", "precision", "epochs", "seed", "val_dice", "epoch", "signature", "cache", "batch_size", "affine"), EVIL), "teachers": {"teachers": [EVIL]}, "split": {"split": {"policy": EVIL, "seed": 1, "val_fraction": 0.1}},
        "policy file": {"split": {"policy": f"csv:{outside / 'secret.csv'}", "seed": 1, "val_fraction": 0.1}}, "teacher": {"provenance": {"teachers": [{**one, "name": EVIL, "licence": EVIL, "contamination": EVIL}]}},
        "teacher without digest": {"provenance": {"teachers": [{key: one[key] for key in ("name", "licence", "contamination")}]}}, "set without frames": {"provenance": {"datasets": [{"name": EVIL}]}},
        "cache absolute": {"cache": str(outside.with_name("named") / "store.zarr")}, "cache upwards": {"cache": "../named/store.zarr"}, "cache remote": {"cache": "s3://injected/store.zarr"}, "cache web": {"cache": "http://127.0.0.1:9/store.zarr"},
        "val Dice nan": {"val_dice": float("nan")}, "figures": {"export": {"figures": [{"dataset": EVIL, "split": EVIL, "protocol": EVIL, "images": EVIL, "mdice": 1, "miou": 1}]}}, "figures text": {"export": {"figures": EVIL}},
        "epoch list": {"epoch": [EVIL], "val_dice": 0.5}, "frames text": {"provenance": {"datasets": [{"name": "a", "frames": EVIL}]}},
    }  # fmt: skip
    files = {name: checkpoint(header(**changes)) for name, changes in headers.items()}
    files["long"] = struct.pack("<Q", 1 << 60) + b"{}"
    files["deep"] = struct.pack("<Q", len(DEEP)) + DEEP
    return {f"checkpoint {name}": forgotten("checkpoints/best.safetensors", raw) for name, raw in files.items()}


def _links(outside: Path) -> dict[str, Change]:
    """Links that lead out, and lists that name what is outside."""
    changes: dict[str, Change] = {}
    for name in (
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "samples.csv",
        "results.csv",
        "bench.json",
        "overlays",
        "checkpoints",
        "evaluation",
        "evaluation/per-image",
        "train.log",
    ):
        for kind, target in (("absolute", str(outside)), ("relative", os.path.join("../" * (2 + name.count("/")), "outside"))):
            changes[f"{name} {kind} link"] = linked(name, target if "." not in Path(name).name else f"{target}/secret.txt")
    for name, target in (("loop", "overlays"), ("device", "/dev/zero"), ("passwd", "/etc/passwd")):
        changes[f"overlays {name}"] = linked("overlays", target)
    changes["pipe"] = lambda run: os.mkfifo(run / "overlays/pipe")
    drawn = str(outside.with_name("named") / "secret.png")
    secret = {"image": drawn, "mask": drawn}
    for name, values in {"outside": secret, "upwards": {"image": "../named/secret.png"}, "mask outside": {"mask": drawn}, "device": {"image": "/dev/zero"}, "texts": dict.fromkeys(("image", "mask", "image_sha256"), EVIL)}.items():  # fmt: skip
        changes[f"frames.csv {name}"] = cells("evaluation/frames.csv", values)
    changes["record of a network elsewhere"] = elsewhere(str(outside.with_name("named") / "secret.safetensors"))
    changes["record of a network on the hub"] = elsewhere("hf:injected/net")
    changes["record of maps elsewhere"] = elsewhere(str(outside.with_name("named")), kind="masks", sha256=None)
    return changes
