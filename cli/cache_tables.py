"""The tables of `polyp-difom cache`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyp_difom.cli.console import echo, print_table

if TYPE_CHECKING:
    from polyp_difom.cache.compare import Difference
    from polyp_difom.pipeline.recompute import Likeness

MIB = 2**20


def tell_likeness(found: list[Likeness]) -> None:
    """Stored maps against the live teachers', a row an array."""
    rows = [
        [r.teacher, r.scale, r.kind, f"{r.cosine:.6f}", f"{r.worst:.6f}", f"{r.error:.2%}", f"{r.exact:.0%}"] for r in found
    ]
    print_table(["teacher", "scale", "array", "cosine", "least", "relative error", "bit for bit"], rows)


def tell_difference(found: Difference) -> None:
    """What two stores differ in, and in a last line whether they do."""
    if found.settings:
        print_table(["setting", "first", "second"], [[key, str(a), str(b)] for key, a, b in found.settings])
    for what, ids in (
        ("only in the first", found.only_first), ("only in the second", found.only_second),
        ("of another file or split", found.changed), ("not complete, not compared", found.unfinished),
    ):  # fmt: skip
        if ids:
            echo(f"{len(ids)} samples {what}: {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}")
    if found.arrays:
        rows = [[a.key, str(a.samples), f"{a.largest:.4g}", f"{a.cosine:.6f}"] for a in found.arrays]
        print_table(["array", f"samples that differ, of {found.shared}", "largest difference", "cosine"], rows)
    echo("the stores are equal" if found.equal else "the stores differ")


def overview(summary: dict[str, Any]) -> list[list[str]]:
    """(topic, text) rows of `FeatureStore.summary`."""
    shards, ledger = summary["shards"], summary["ledger"]
    splits = ", ".join(f"{number:,} {name}" for name, number in summary["splits"].items())
    sets = "; ".join(f"{name}: {sum(part.values()):,}" for name, part in summary["datasets"].items())
    grids = ", ".join(f"{scale} {cells} x {cells}" for scale, cells in summary["scales"].items())
    state = "complete" if shards["done"] == shards["total"] else "not complete: run the same extract again"
    return [
        ["state", f"{state} ({shards['done']} of {shards['total']} shards)"],
        ["frames", f"{summary['frames']:,} of {summary['frame_size']} x {summary['frame_size']} pixels ({splits})"],
        ["data sets", sets],
        ["views", ", ".join(summary["views"])],
        ["scales", f"{grids} cells"],
        ["spectra", summary["spectra"]],
        ["teachers ran in", _precisions(summary)],
        ["size", f"{summary['total_bytes'] / MIB:,.1f} MiB"],
        [
            "cost",
            f"{ledger['teacher_seconds']:,.1f} s teachers, {ledger['decode_seconds']:,.1f} s waiting for frames, "
            f"{ledger['write_seconds']:,.1f} s writing (fitting bases and measuring flips not counted)",
        ],
        ["signature", summary["signature"]],
        ["made with", ", ".join(f"{name} {number}" for name, number in summary["software"].items())],
    ]


def _precisions(summary: dict[str, Any]) -> str:
    """The store's precision, and which teachers ran in float32 all the same: those whose maps it was measured not to move."""
    from polyp_difom.cache.inspection import EXACT  # here: `--help` waits for no zarr

    measured = summary["measured"].items()
    exact = [group.split("/")[1] for group, values in measured if values.get("precision_error", 1.0) < EXACT]
    if not exact:
        return summary["precision"]
    return "float32" if len(exact) == len(summary["teachers"]) else f"{summary['precision']}; {', '.join(exact)} in float32"


def arrays(summary: dict[str, Any]) -> list[list[str]]:
    """A row an array: key, shape, dtype, MiB on disk."""
    return [
        [key, " x ".join(map(str, array["shape"])), array["dtype"], f"{array['bytes'] / MIB:,.2f}"]
        for key, array in summary["arrays"].items()
    ]


def measured(groups: dict[str, dict[str, float]]) -> list[list[str]]:
    """A row a measurement: what, of which teacher, value."""
    rows = []
    for group, values in groups.items():
        name = group.removeprefix("teachers/").partition("/equivariance")[0].removesuffix("/basis").replace("/", ", ")
        if "variance_held" in values:
            what = f"variance held by {values['stored']} of {values['native']} channels"
            rows.append([what, name, f"{values['variance_held']:.1%}"])
            errors = {key.removeprefix("int8_error, "): value for key, value in values.items() if key.startswith("int8_error")}
            rows += [[f"relative error of int8 maps, {scale}", name, f"{error:.2%}"] for scale, error in errors.items()]
            continue
        for measure, value in values.items():
            if measure == "precision_error":
                rows.append(["relative error of the precision", name, f"{value:.1%}"])
            elif measure != "identity":
                moved = "moved" if measure == "affine" else "flipped"
                rows.append([f"cosine of a {moved} map with the map of the {moved} frame, {measure}", name, f"{value:.3f}"])
    return rows
