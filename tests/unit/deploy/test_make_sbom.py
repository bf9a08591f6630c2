"""What an image holds, from lists as cyclonedx-py and dpkg write them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

DPKG_STATUS = """Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2.15-2+b8
Description: GNU Bourne Again SHell
 Bash is an sh-compatible command language interpreter: it executes
 Package: not-a-field

Package: apt
Status: deinstall ok config-files
Architecture: amd64
Version: 2.6.1

Package: libc6
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Version: 1:2.36-9+deb12u10
"""


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("scripts/make_sbom.py")


def python_component(name: str, *licences: dict[str, object]) -> dict[str, object]:
    reference = f"{name}==1.0"
    return {
        "name": name,
        "version": "1.0",
        "bom-ref": reference,
        "purl": f"pkg:pypi/{name}@1.0",
        "licenses": list(licences),
    }


def test_debian_components_are_the_installed_packages_with_their_urls(script: ModuleType) -> None:
    # The form of the URLs: the package-url specification, type "deb".
    assert [component["purl"] for component in script.debian_components(DPKG_STATUS)] == [
        "pkg:deb/debian/bash@5.2.15-2%2Bb8?arch=amd64&distro=debian-12",
        "pkg:deb/debian/libc6@1%3A2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12",
    ]


def test_merged_document_has_the_image_above_every_component(script: ModuleType) -> None:
    python = {
        "bomFormat": "CycloneDX",
        "components": [python_component("zeta"), python_component("alpha")],
        "dependencies": [{"ref": "zeta==1.0", "dependsOn": ["alpha==1.0"]}],
    }
    document = script.merged(
        python,
        debian=script.debian_components(DPKG_STATUS),
        image="wardround/coordinator",
        version="0.1.0",
        interpreter="3.11.14",
    )
    assert document["metadata"]["component"]["name"] == "wardround/coordinator"
    assert {component["name"] for component in document["components"]} == {"alpha", "zeta", "bash", "libc6", "python"}
    top = document["dependencies"][-1]
    assert top["ref"] == "wardround/coordinator:0.1.0"
    assert top["dependsOn"] == sorted(component["bom-ref"] for component in document["components"])
    assert document["dependencies"][0] == {"ref": "zeta==1.0", "dependsOn": ["alpha==1.0"]}


def test_merged_document_of_a_base_with_debians_python_names_it_once(script: ModuleType) -> None:
    status = "Package: python3.11-minimal\nStatus: install ok installed\nArchitecture: amd64\nVersion: 3.11.2-6\n"
    document = script.merged(
        {"components": []}, debian=script.debian_components(status), image="x", version="1", interpreter="3.11.2"
    )
    assert [component["name"] for component in document["components"]] == ["python3.11-minimal"]


@pytest.mark.parametrize(
    ("licence", "copyleft"),
    [
        ("MIT", False),
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause", False),
        ("MPL-2.0 AND MIT", False),
        ("License :: OSI Approved :: BSD License", False),
        ("GPL-3.0-only", True),
        ("LGPL-2.1-or-later", True),
        ("AGPL-3.0-only", True),
        ("BSD-3-Clause AND GPL-2.0-or-later", True),
        ("MIT OR GPL-2.0-only", False),
        ("(MIT OR GPL-2.0-only) AND LGPL-3.0-only", True),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("License :: OSI Approved :: GNU Lesser General Public License v3 or later (LGPLv3+)", True),
        ("GPLv2", True),
    ],
)
def test_copyleft_is_what_leaves_no_other_choice(script: ModuleType, licence: str, copyleft: bool) -> None:
    assert script.is_copyleft(licence) is copyleft


def test_refused_licences_name_the_package_and_what_to_do(script: ModuleType) -> None:
    document = {
        "components": [
            python_component("fine", {"license": {"id": "MIT"}}),
            python_component("psycopg", {"license": {"name": "GNU Lesser General Public License v3 (LGPLv3)"}}),
            python_component("both", {"expression": "MIT AND GPL-3.0-only"}),
            python_component("silent"),
            python_component("transformers"),
            {"name": "bash", "version": "5", "bom-ref": "b", "purl": "pkg:deb/debian/bash@5"},
        ]
    }
    refused = script.refused_licences(document)
    assert [line.split(":")[0] for line in refused] == ["psycopg", "both", "silent"]
    assert "READ_BY_A_PERSON" in refused[2]
