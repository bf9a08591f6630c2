"""What the trainer does not get to see."""

from __future__ import annotations

import pytest

from site_agent.jobs.trainer_environment import threads_in, trainer_environment


def test_keys_tokens_and_proxies_do_not_reach_the_trainer() -> None:
    secrets = {
        "https_proxy": "http://proxy:3128",
        "HTTPS_PROXY": "http://proxy:3128",
        "NO_PROXY": "localhost",
        "WARDROUND_KEYS__PASSPHRASE": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "HF_TOKEN": "x",
        "SSH_AUTH_SOCK": "/agent",
        "WARDROUND_STATE_DIR": "/state",
    }
    given = trainer_environment({**secrets, "PATH": "/bin"}, threads=None)
    assert not secrets.keys() & given.keys()
    assert given["PATH"] == "/bin"


def test_trainer_is_offline_and_has_its_threads() -> None:
    given = trainer_environment({"OMP_NUM_THREADS": "64"}, threads=2)
    assert given["HF_HUB_OFFLINE"] == "1"
    assert given["OMP_NUM_THREADS"] == "2"


def test_threads_left_open_are_the_libraries_choice() -> None:
    assert "OMP_NUM_THREADS" not in trainer_environment({"OMP_NUM_THREADS": "64"}, threads=None)


@pytest.mark.parametrize(
    ("said", "threads"), [("3", 3), ("", None), ("0", None), ("-1", None), ("2,1", None), ("²", None)]
)
def test_threads_that_a_trainers_own_environment_bounds_are_read(said: str, threads: int | None) -> None:
    assert threads_in({"OMP_NUM_THREADS": said}) == threads
    assert threads_in({}) is None
