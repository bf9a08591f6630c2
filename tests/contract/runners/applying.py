"""Which case of the contract says something of which runner. What does not apply is a row with its reason."""

from __future__ import annotations

RUNNERS = ("process", "spool", "spool in a container", "docker", "kubernetes")
ENGINE_RUNNERS = frozenset({"spool in a container", "docker", "kubernetes"})
"""Those that need a container engine: their cases carry the marker ``containers``."""

CASES = (
    "success",
    "typed failure",
    "crash",
    "out of memory",
    "time-out",
    "cancel",
    "progress",
    "image mismatch",
    "no network",
    "read-only root",
    "GPU absent",
)

NOT_APPLYING = {
    ("process", "image mismatch"): "there is no image: the program is this installation's own",
    ("process", "no network"): "a process of this user has this machine's network; it isolates nothing",
    ("process", "read-only root"): "a process of this user may write wherever the agent may; it isolates nothing",
    ("spool", "image mismatch"): "the agent starts no image; whoever starts the trainer's container names it by digest",
    (
        "spool in a container",
        "image mismatch",
    ): "the agent starts no image; whoever starts the trainer's container names it by digest",
    ("spool", "read-only root"): "is a property of the trainer's container, which is not this runner's to start",
}
