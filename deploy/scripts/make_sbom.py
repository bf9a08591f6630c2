"""Say what an image holds: one CycloneDX document of Python's and Debian's packages, and a word on their licences.

    cyclonedx-py environment VENV/bin/python --output-reproducible --output-file python.json
    python make_sbom.py --python python.json --dpkg-status /var/lib/dpkg/status --image wardround/coordinator \
        --image-version 0.1.0 --out sbom.cdx.json

cyclonedx-py lists Python's packages; Debian's are added from dpkg's own list, and Python itself where dpkg does not
know it. It fails where a Python package comes under the GPL, LGPL or AGPL, or under a licence that nobody has read: an
image is published, and its terms are ours to keep. (The base's Debian packages come under their own.)
It runs inside an image's build, which has the CycloneDX library.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from license_expression import ExpressionError, get_spdx_licensing

Document = dict[str, object]

# Packages whose metadata name no licence: read in their source by a person.
READ_BY_A_PERSON = {
    # Holds no file: it names which of NVIDIA's packages belong together.
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    # Its own LICENSE.txt; like the other libraries of CUDA it may be redistributed as part of a program, as it is.
    "nvidia-cusparselt-cu13": "LicenseRef-NVIDIA-Proprietary",
    "protobuf": "BSD-3-Clause",
    "transformers": "Apache-2.0",
    "wardround": "Apache-2.0",
}
COPYLEFT = ("AGPL", "GPL", "LGPL")


def debian_components(status: str) -> list[Document]:
    """The installed packages of dpkg's list.

    Args:
        status: the text of /var/lib/dpkg/status: paragraphs of `Field: value`.
    """
    components: list[Document] = []
    for paragraph in status.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and not line.startswith(" ")
        )
        if fields.get("Status", "").split()[-1:] != ["installed"]:
            continue
        name, version = fields["Package"], fields["Version"]
        where = f"arch={fields['Architecture']}&distro=debian-12"
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='.~-')}?{where}"
        components.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return components


def merged(python: Document, *, debian: list[Document], image: str, version: str, interpreter: str) -> Document:
    """The document of an image: every component once, in the order of their references, and the image above them.

    Args:
        python: what cyclonedx-py wrote.
        debian: what `debian_components` found.
        image: such as `wardround/coordinator`.
        version: the image's.
        interpreter: Python's version, such as 3.11.14.
    """
    components = [*_components(python), *debian]
    if not any(str(component["name"]).startswith("python3.") for component in debian):
        purl = f"pkg:generic/python@{interpreter}"
        components.append({"type": "platform", "bom-ref": purl, "name": "python", "version": interpreter, "purl": purl})
    components.sort(key=lambda component: str(component["bom-ref"]))
    top = f"{image}:{version}"
    dependencies = python.get("dependencies", [])
    assert isinstance(dependencies, list)
    metadata = python.get("metadata", {})
    assert isinstance(metadata, dict)
    whole: Document = {"type": "container", "bom-ref": top, "name": image, "version": version}
    below = [str(component["bom-ref"]) for component in components]
    return {
        **python,
        "metadata": {**metadata, "component": whole},
        "components": components,
        "dependencies": [*dependencies, {"ref": top, "dependsOn": below}],
    }


def refused_licences(document: Document) -> list[str]:
    """One sentence for each Python package that must not ship."""
    refused = []
    for component in _components(document):
        name = str(component["name"])
        if not str(component.get("purl", "")).startswith("pkg:pypi/"):
            continue
        named = list(_licences(component))
        if not named and name.lower() not in READ_BY_A_PERSON:
            refused.append(f"{name}: names no licence; read it, and add it to READ_BY_A_PERSON")
        refused.extend(f"{name}: {licence}" for licence in named if is_copyleft(licence))
    return refused


def is_copyleft(licence: str) -> bool:
    """Whether a licence (an SPDX expression, or the words of a classifier) leaves no choice but the GPL's family.

    Of terms joined by OR one may be chosen; an exception (WITH) is how a compiler's runtime library is permitted.
    """
    if "General Public License" in licence:
        return True
    try:
        parsed = get_spdx_licensing().parse(licence)
    except ExpressionError:
        return any(word.strip("()").startswith(COPYLEFT) for word in licence.split())
    return _must_be_copyleft(parsed)


def _must_be_copyleft(node: object) -> bool:
    arguments = getattr(node, "args", ())
    operator = type(node).__name__
    if operator == "OR":
        return all(_must_be_copyleft(argument) for argument in arguments)
    if operator == "AND":
        return any(_must_be_copyleft(argument) for argument in arguments)
    return operator != "LicenseWithExceptionSymbol" and str(node).startswith(COPYLEFT)


def _components(document: Document) -> list[Document]:
    components = document.get("components", [])
    assert isinstance(components, list)
    return components


def _licences(component: Document) -> Iterator[str]:
    choices = component.get("licenses", [])
    assert isinstance(choices, list)
    for choice in choices:
        licence = choice.get("license", {})
        yield str(choice.get("expression") or licence.get("id") or licence.get("name"))


def _check_schema(text: str) -> None:
    """Raise where the document is not one of CycloneDX 1.6."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if fault is not None:
        raise SystemExit(f"not a CycloneDX document: {fault}")


def main() -> int:
    """Write the document, or say which licence forbids the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="what cyclonedx-py wrote")
    parser.add_argument("--dpkg-status", type=Path, required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--image-version", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parsed = parser.parse_args()
    document = merged(
        json.loads(parsed.python.read_text()),
        debian=debian_components(parsed.dpkg_status.read_text()),
        image=parsed.image,
        version=parsed.image_version,
        interpreter=platform.python_version(),
    )
    refused = refused_licences(document)
    if refused:
        print("licences that an image of ours must not hold:", *refused, sep="\n  ", file=sys.stderr)
        return 1
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    _check_schema(text)
    parsed.out.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
