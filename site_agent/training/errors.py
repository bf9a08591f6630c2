"""What can stop a job, each with advice for the site's operator. Knows no torch.

    WardroundError
    └── TrainerError
        ├── BaseModelError
        │   ├── BaseModelMissingError           a file of the base model is not there
        │   ├── BaseModelInvalidError           it is there and cannot be used
        │   └── BaseModelDigestMismatchError    it is not the model that the run names
        ├── AdapterError
        │   ├── TargetModulesUnknownError       the model has no such modules
        │   ├── AdapterUnsuitableError          the base has not what this kind of adapter stands on
        │   ├── AdapterLayoutMismatchError      the run names another layout than this model gives
        │   ├── InitialAdapterMismatchError     the run names another adapter v0 than its seed gives
        │   └── AdapterUnreadableError          an adapter folder to generate with is not one
        ├── DatasetError
        │   ├── DatasetMissingError
        │   ├── DatasetEmptyError
        │   ├── DatasetMalformedError           at record k, in a field
        │   │   └── CodeWithoutDateError        a row of a timeline has a code and no time
        │   ├── DatasetFormatUnknownError
        │   ├── DatasetChangedError             not the file that was registered, or changed while it was used
        │   ├── DatasetTooSmallError            fewer records or patients than the run demands
        │   ├── NoUsableRecordsError            nothing to train on, or nothing held out to evaluate on
        │   ├── LabelUnknownError               a record's label is none of the run's classes
        │   ├── OneClassOnlyError               nothing to tell apart
        │   └── ManifestInvalidError, ...       site_agent.training.images.errors
        ├── VocabularyInvalidError              the list of codes is none, or not the one that the run names
        ├── ChatTemplateError                   the model's tokenizer has none, or one that cannot be used
        ├── TextMarksMissingError               the model's tokenizer has no token to begin a text with
        ├── PackingUnavailableError             the run demands packed rows, and the model does not permit them
        ├── CheckpointUnusableError             never stops a job: it starts from its beginning
        ├── LossNotFiniteError
        ├── OutOfMemoryError
        ├── DeviceUnavailableError
        ├── QuantizationUnavailableError        the run wants a base of 8 or 4 bits, and this machine cannot load one
        ├── LibraryMissingError                 an optional library that this job needs is not installed
        └── UnexpectedFailureError              anything else: its type, never its text

Safety: neither a message nor a fact quotes a record; a record is named by its line.
"""

from __future__ import annotations

from typing import ClassVar

from fl_protocol.errors import WardroundError


class TrainerError(WardroundError):
    """Base of the trainer's errors.

    Attributes:
        advice: what the site's operator or the study lead can do about it.
    """

    code = "trainer-error"
    advice: ClassVar[str] = ""


class BaseModelError(TrainerError):
    """Something is wrong with the base model's folder."""

    code = "base-model-error"


class BaseModelMissingError(BaseModelError):
    """A file of the base model is not there."""

    code = "base-model-missing"
    advice = "Check base_models in site.yaml: the folder must hold config.json, model.safetensors and the tokenizer."


class BaseModelInvalidError(BaseModelError):
    """The base model's folder cannot be used."""

    code = "base-model-invalid"
    advice = (
        "Only safetensors models that this trainer's libraries know can be used, without code of their own, with every "
        "weight, and with as many positions as local.max_length and the adapter's virtual tokens take."
    )


class BaseModelDigestMismatchError(BaseModelError):
    """The folder holds another model than the run names."""

    code = "base-model-digest-mismatch"
    advice = (
        "Convert or copy the base model again and compare 'python -m site_agent.training digest-model DIR' with the "
        "digest that the run names."
    )


class AdapterError(TrainerError):
    """Something is wrong with the adapter."""

    code = "adapter-error"


class TargetModulesUnknownError(AdapterError):
    """The base model has no modules of the names that the run targets."""

    code = "target-modules-unknown"
    advice = "The study lead must name linear modules of this base model under adapter.targets."


class AdapterUnsuitableError(AdapterError):
    """The base model has not the parts that the run's kind of adapter stands on."""

    code = "adapter-unsuitable"
    advice = "The study lead must choose task, adapter and base model that go together: see docs/tasks."


class AdapterLayoutMismatchError(AdapterError):
    """The layout that the run names is not the one that its adapter has on its base model."""

    code = "adapter-layout-mismatch"
    advice = "Make the adapter again with 'init-adapter' on the run's own specification and base model."


class InitialAdapterMismatchError(AdapterError):
    """Adapter v0 is not the one that the run's seed gives: somebody may have put another in its place."""

    code = "initial-adapter-mismatch"
    advice = "Do not join this run. The study lead must make adapter v0 with 'init-adapter' and create the run anew."


class AdapterUnreadableError(AdapterError):
    """A folder holds no adapter that can be loaded onto the base model."""

    code = "adapter-unreadable"
    advice = "Name a folder that holds adapter_config.json and adapter_model.safetensors."


class DatasetError(TrainerError):
    """Something is wrong with the dataset."""

    code = "dataset-error"


class DatasetMissingError(DatasetError):
    """The dataset's file is not there, or cannot be read."""

    code = "dataset-missing"
    advice = "Check the path that the dataset was registered with, and that the trainer may read it."


class DatasetEmptyError(DatasetError):
    """The dataset's file holds no record."""

    code = "dataset-empty"
    advice = "Export the records again and register the file."


class DatasetMalformedError(DatasetError):
    """A record is not what the schema says; facts name its file, line and field."""

    code = "dataset-malformed"
    advice = (
        "Mend the file at the line and field that are named, or correct format and schema in the dataset's "
        "registration where the file is right. Records of text have the keys of their task: id and prompt and "
        "completion (instruction-tuning), id and prompt and chosen and rejected (preference-alignment), or id and text "
        "(language-modelling); timelines have the columns, tables or resources of their format: docs/tasks."
    )


class CodeWithoutDateError(DatasetMalformedError):
    """A code of a timeline has no time, so that nobody can say what came before it."""

    code = "code-without-date"
    advice = "Leave rows without a date out of the export, or export the date on which they were recorded."


class DatasetFormatUnknownError(DatasetError):
    """The dataset is registered with a format that this trainer cannot read."""

    code = "dataset-format-unknown"
    advice = "This version reads text records from the formats jsonl, csv and parquet."


class DatasetChangedError(DatasetError):
    """The dataset's file is not the one that was registered."""

    code = "dataset-changed"
    advice = (
        "Withdraw the dataset and register the file again ('wardround-site datasets withdraw', then 'register'): what "
        "a run was approved over is the file's digest, not its path, so runs have to be approved anew."
    )


class DatasetTooSmallError(DatasetError):
    """The dataset has fewer records or patients than the run demands."""

    code = "dataset-too-small"
    advice = "The run's data.min_records and data.min_patients must be met; decline the run otherwise."


class NoUsableRecordsError(DatasetError):
    """No record is left to train on."""

    code = "no-usable-records"
    advice = (
        "evaluation.holdout_fraction may hold out every record; or of no record an example can be made: prompts fill "
        "local.max_length, timelines have fewer known codes than task.min_tokens, or texts affirm none of the classes."
    )


class VocabularyInvalidError(TrainerError):
    """A list of codes is none, or not the one that the run names."""

    code = "vocabulary-invalid"
    advice = "Take vocab.txt as the vocabulary run released it; its SHA-256 is task.vocabulary_sha256 of the run."


class LabelUnknownError(DatasetError):
    """A record has a label that the run's classes do not have, or not the labels that the task needs."""

    code = "label-unknown"
    advice = "Labels in the dataset must be spelt as the run's task.classes are, or the record has to be left out."


class OneClassOnlyError(DatasetError):
    """All records to train on are of one class."""

    code = "one-class-only"
    advice = "This task learns to tell classes apart: the dataset needs records of at least two of the run's classes."


class ChatTemplateError(TrainerError):
    """The base model's tokenizer has no chat template, or one that cannot tell prompt from completion."""

    code = "chat-template-unusable"
    advice = "Use an instruction-tuned base model whose tokenizer brings its chat template."


class TextMarksMissingError(TrainerError):
    """The base model's tokenizer marks neither the beginning nor the end of a text."""

    code = "text-marks-missing"
    advice = "Use a base model whose tokenizer has a beginning-of-text or an end-of-text token."


class PackingUnavailableError(TrainerError):
    """The run demands packed rows, and they would give another loss on this base with this adapter."""

    code = "packing-unavailable"
    advice = "The study lead should leave task.packing out: rows are then packed where the base model permits it."


class CheckpointUnusableError(TrainerError):
    """What lies in a checkpoint's place is damaged, or is not this job's."""

    code = "checkpoint-unusable"


class LossNotFiniteError(TrainerError):
    """The loss became NaN or infinite."""

    code = "loss-not-finite"
    advice = "Training diverged: the study lead should lower local.learning_rate, or add local.warmup_steps."


class OutOfMemoryError(TrainerError):
    """The device has not enough memory for this job."""

    code = "out-of-memory"
    advice = (
        "Lower local.batch_size (raise local.accumulation by as much) or local.max_length, set "
        "local.gradient_checkpointing, or give more memory; fitting_batch_size among the facts is one that fitted here."
    )


class DeviceUnavailableError(TrainerError):
    """The device that the job asks for is not there."""

    code = "device-unavailable"
    advice = "Set the runner's device to auto or cpu, or make the GPU visible to the trainer."


class QuantizationUnavailableError(TrainerError):
    """The run wants its base model in 8 or 4 bits, which this machine cannot give."""

    code = "quantization-unavailable"
    advice = (
        "base_model.quantization needs a GPU and the library bitsandbytes (pip install 'wardround[quantization]'); "
        "decline the run otherwise, or ask the study lead for one with quantization none."
    )


class LibraryMissingError(TrainerError):
    """An optional library that this job needs is not installed; the fact ``extra`` names what brings it."""

    code = "library-missing"
    advice = "Install the extra that the facts name: pip install 'wardround[EXTRA]'."


class UnexpectedFailureError(TrainerError):
    """Something that nobody foresaw. Only the error's type is told, since its text may quote a record."""

    code = "unexpected-failure"
    advice = "The trainer's own log at this site has the place; report it without the data."
