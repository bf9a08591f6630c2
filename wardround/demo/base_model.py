"""The base model's folder and digest: found, or made once, by the program that the study names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wardround.demo.processes import Supervisor
from wardround.demo.workspace import Checkout, Programs
from wardround.documents import document_from_text, section_of, text_of
from wardround.errors import DemoFailedError
from wardround.studies.description import ProgramCall

UNPINNED = "0" * 64
"""What a study writes as the digest of a base model that is made on the machine."""

_MANIFEST = "manifest.json"
_BUILD_TIMEOUT_S = 900.0
_DIGEST_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model on this machine. ``sha256`` is the model digest; the trainers check it before they train.

    Attributes:
        run_spec: what its builder says of the run's specification, by section, such as the digest of a vocabulary.
    """

    name: str
    folder: Path
    sha256: str
    run_spec: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedModel:
    """A base model that a run starts from, and how it is made.

    Attributes:
        name: as the run's specification has it.
        builder: None where nobody makes it: then its folder must be there.
        study_folder: where the study's own programs lie.
        places: what the builder's arguments may name; see ``ProgramCall.arguments``.
        own_folder: where a model is put that is this demonstration's own, since it depends on its data or runs.
    """

    name: str
    builder: ProgramCall | None
    study_folder: Path
    places: Mapping[str, str]
    own_folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModels:
    """The folder of models, and how a missing one is made."""

    models_dir: Path
    checkout: Checkout
    supervisor: Supervisor
    programs: Programs

    def ensure(self, wanted: WantedModel) -> BaseModel:
        """The base model, made now if it is not there.

        Raises:
            DemoFailedError: it is not there and cannot be made.
        """
        builder = wanted.builder
        if builder is not None and builder.has_places:
            return self._build(wanted, builder, wanted.own_folder / wanted.name)
        folder = self.models_dir / wanted.name
        if (folder / "config.json").is_file():
            return BaseModel(name=wanted.name, folder=folder, sha256=self._digest(folder), run_spec={})
        if builder is None:
            raise DemoFailedError(
                f"the base model {wanted.name!r} is not in {self.models_dir}",
                advice=f"Put its folder (config.json, model.safetensors, tokenizer) at {folder}, or use --models-dir.",
            )
        return self._build(wanted, builder, folder)

    def _build(self, wanted: WantedModel, builder: ProgramCall, folder: Path) -> BaseModel:
        folder.parent.mkdir(parents=True, exist_ok=True)
        words = (*builder.arguments_in(wanted.places), "--out", str(folder), "--json")
        program = self._program(wanted, builder)
        answer = self.supervisor.run_json("base-model", (*program, *words), timeout_s=_BUILD_TIMEOUT_S)
        said = section_of(answer, "run_spec")
        return BaseModel(name=wanted.name, folder=folder, sha256=self._digest(folder), run_spec=said)

    def _program(self, wanted: WantedModel, builder: ProgramCall) -> tuple[str, ...]:
        if builder.is_verb:
            return (*self.programs.trainer, builder.program)
        # A study's own program comes first; those of several studies lie with the other scripts.
        places = (wanted.study_folder, self.checkout.root / "deploy" / "scripts")
        script = next((place / builder.program for place in places if (place / builder.program).is_file()), None)
        if script is None:
            raise DemoFailedError(f"the study's program for the base model is missing: {builder.program}")
        return (*self.programs.python, str(script))

    def _digest(self, folder: Path) -> str:
        manifest = folder / _MANIFEST
        if manifest.is_file():
            return text_of(document_from_text(manifest.read_text(encoding="utf-8"), source=manifest.name), "sha256")
        arguments = (*self.programs.trainer, "digest-model", str(folder), "--json")
        answer = self.supervisor.run_json("digest-model", arguments, timeout_s=_DIGEST_TIMEOUT_S)
        return text_of(answer, "base_model_sha256")


def with_base_model(run_spec: Mapping[str, object], model: BaseModel) -> dict[str, object]:
    """The specification with the model's digest, and what its builder said; one that names another digest is refused.

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
    said = {
        key: {**section_of(run_spec, key), **value}
        for key, value in model.run_spec.items()
        if isinstance(value, Mapping)
    }
    return {**run_spec, **said, "base_model": {**section, "sha256": model.sha256}}
