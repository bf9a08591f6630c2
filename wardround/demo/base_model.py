"""The base model's folder and digest: found, or made once, by the program that the study names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wardround.demo.processes import Supervisor
from wardround.demo.workspace import Checkout, Programs
from wardround.documents import document_from_text, section_of, text_of
from wardround.errors import DemoFailedError
from wardround.studies.catalogue import Study

UNPINNED = "0" * 64
"""What a study writes as the digest of a base model that is made on the machine."""

_MANIFEST = "manifest.json"
_BUILD_TIMEOUT_S = 900.0
_DIGEST_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model on this machine. ``sha256`` is the model digest; the trainers check it before they train."""

    name: str
    folder: Path
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModels:
    """The folder of models, and how a missing one is made."""

    models_dir: Path
    checkout: Checkout
    supervisor: Supervisor
    programs: Programs

    def ensure(self, study: Study) -> BaseModel:
        """The study's base model, made now if it is not there.

        Raises:
            DemoFailedError: it is not there and cannot be made.
        """
        name = study.base_model_name
        folder = self.models_dir / name
        if not (folder / "config.json").is_file():
            self._build(study, folder)
        return BaseModel(name=name, folder=folder, sha256=self._digest(folder))

    def _build(self, study: Study, folder: Path) -> None:
        builder = study.description.base_model
        if builder is None:
            raise DemoFailedError(
                f"the base model {study.base_model_name!r} is not in {self.models_dir}",
                advice=f"Put its folder (config.json, model.safetensors, tokenizer) at {folder}, or use --models-dir.",
            )
        self.models_dir.mkdir(parents=True, exist_ok=True)
        # A study's own program comes first; those of several studies lie with the other scripts.
        places = (study.folder, self.checkout.root / "deploy" / "scripts")
        script = next((place / builder.program for place in places if (place / builder.program).is_file()), None)
        if script is None:
            raise DemoFailedError(f"the study's program for the base model is missing: {builder.program}")
        arguments = (*self.programs.python, str(script), "--out", str(folder), "--json", *builder.arguments)
        self.supervisor.run("base-model", arguments, timeout_s=_BUILD_TIMEOUT_S)

    def _digest(self, folder: Path) -> str:
        manifest = folder / _MANIFEST
        if manifest.is_file():
            return text_of(document_from_text(manifest.read_text(encoding="utf-8"), source=manifest.name), "sha256")
        arguments = (*self.programs.trainer, "digest-model", str(folder), "--json")
        answer = self.supervisor.run_json("digest-model", arguments, timeout_s=_DIGEST_TIMEOUT_S)
        return text_of(answer, "base_model_sha256")


def with_base_model(run_spec: Mapping[str, object], model: BaseModel) -> dict[str, object]:
    """The specification with the model's digest; one that names another digest is refused.

    Raises:
        DemoFailedError: the study pins another model than the one that is here.
    """
    section = section_of(run_spec, "base_model")
    if section.get("sha256") not in (None, UNPINNED, model.sha256):
        raise DemoFailedError(
            f"the study is made for another {model.name} than the one in {model.folder}",
            advice="Remove that folder to have it converted again, or name another with --models-dir.",
            found_sha256=model.sha256,
        )
    return {**run_spec, "base_model": {**section, "sha256": model.sha256}}
