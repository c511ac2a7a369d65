"""`polyp-difom doctor`: what this installation can do."""

from __future__ import annotations

from polyp_difom.cli import options
from polyp_difom.cli.console import guarded, print_json, print_table


@guarded
def doctor(as_json: options.Json = False) -> None:
    """Versions, devices, extras, and which weights are within reach; downloads nothing."""
    from dataclasses import asdict

    from polyp_difom.pipeline.health import check_up, require_sound

    findings = check_up()
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        marks = {True: "ok", None: "-", False: "MISSING"}
        print_table(["topic", "name", "", "detail"], [[f.topic, f.name, marks[f.ok], f.detail] for f in findings])
    require_sound(findings)
