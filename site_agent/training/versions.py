"""Which versions of the libraries are installed. Loads none of them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_VERSIONS = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "wardround")


def installed_versions() -> dict[str, str]:
    """The versions of what computed; a package that is not installed as one is left out."""
    versions: dict[str, str] = {}
    for name in _VERSIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
