"""The tiny study of the process suites, as a folder that builds its own base model inside a container."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.support.tiny_study import write_tiny_study

NAME = "tiny-definitions"
BUILDER = "make_base.py"
_MAIN = """

if __name__ == "__main__":
    import argparse
    import json

    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    make_tiny_model(parser.parse_args().out)
    print(json.dumps({"made": True}))
"""


def write_container_study(folder: Path) -> Path:
    """Write the study into a new folder of ``folder``, readable by the containers' user; returns that folder."""
    study = folder / NAME
    write_tiny_study(study)
    source = Path(__file__).parents[2] / "support" / "tiny_model.py"
    (study / BUILDER).write_text(source.read_text(encoding="utf-8") + _MAIN, encoding="utf-8")
    with (study / "study.yaml").open("a", encoding="utf-8") as description:
        description.write(f"base_model: {{builder: {BUILDER}}}\n")
    for path in (folder, study, *study.iterdir()):
        path.chmod(0o755)
    return study
