"""Which of a trainer's words about a failure leave the hospital: a code of this list, and nothing else.

Safety: the trainer has no network, but the agent tells the coordinator why a round failed. A trainer that is taken over
must not be able to put records into that word. Message, advice and facts never leave.
"""

from __future__ import annotations

TOLD_CODES = frozenset(
    {
        "adapter-error",
        "adapter-layout-invalid",
        "adapter-layout-mismatch",
        "adapter-layout-sparse",
        "adapter-tensor-invalid",
        "adapter-unreadable",
        "adapter-unsuitable",
        "base-model-digest-mismatch",
        "base-model-error",
        "base-model-invalid",
        "base-model-missing",
        "chat-template-unusable",
        "checkpoint-unusable",
        "code-without-date",
        "dataset-changed",
        "dataset-empty",
        "dataset-error",
        "dataset-format-unknown",
        "dataset-malformed",
        "dataset-missing",
        "dataset-too-small",
        "device-unavailable",
        "image-missing",
        "image-refused",
        "image-undecodable",
        "initial-adapter-mismatch",
        "job-directory-error",
        "job-file-invalid",
        "job-file-missing",
        "job-file-too-large",
        "jobs-folder-unsafe",
        "label-unknown",
        "library-missing",
        "loss-not-finite",
        "manifest-invalid",
        "no-usable-records",
        "one-class-only",
        "out-of-memory",
        "packing-unavailable",
        "payload-lost",
        "public-state-invalid",
        "quantization-unavailable",
        "run-spec-invalid",
        "safetensors-invalid",
        "target-modules-unknown",
        "tensors-error",
        "text-marks-missing",
        "too-few-records",
        "trainer-error",
        "unexpected-failure",
        "vocabulary-invalid",
        "worker-died",
    }
)

UNFORESEEN_CODE = "unexpected-failure"
"""What is told where a job ends by an error that has no code, at the trainer or at the agent that follows it."""

OTHER_CODE = "trainer-failed"
"""What is told in the place of a code that is not on the list."""


def code_to_tell(code: str) -> str:
    """The code itself where it is on the list."""
    return code if code in TOLD_CODES else OTHER_CODE
