from __future__ import annotations

import pytest
import yaml

from site_agent.enrolment.templates import site_yaml
from site_agent.peers_file import PeersFileError, text_with_peers

PIN = "ab" * 32


def test_text_with_peers_changes_its_block_and_no_other_line() -> None:
    before = site_yaml(site_id="st-mary", gateway_address="fl.example.org:8444")
    after = text_with_peers(before, {"ucsf": PIN, "charite": PIN})
    assert yaml.safe_load(after) == {**yaml.safe_load(before), "peers": {"charite": PIN, "ucsf": PIN}}
    assert [line for line in after.splitlines() if line.startswith("#")] == [
        line for line in before.splitlines() if line.startswith("#")
    ]
    assert text_with_peers(after, {}) == before


def test_text_with_peers_replaces_a_block_between_others() -> None:
    before = f'policy: p.yaml\npeers:\n  charite: "{PIN}"\n  # a comment\nlog: {{level: info}}\n'
    after = text_with_peers(before, {"ucsf": PIN})
    assert yaml.safe_load(after) == {"policy": "p.yaml", "peers": {"ucsf": PIN}, "log": {"level": "info"}}
    assert "# a comment" in after


def test_text_with_peers_adds_a_block_that_is_not_there() -> None:
    assert yaml.safe_load(text_with_peers("policy: p.yaml\n", {"ucsf": PIN})) == {
        "policy": "p.yaml",
        "peers": {"ucsf": PIN},
    }


def test_text_with_peers_keeps_a_key_that_looks_like_a_number_a_text() -> None:
    pin = "1" * 64
    assert yaml.safe_load(text_with_peers("", {"ucsf": pin}))["peers"] == {"ucsf": pin}


@pytest.mark.parametrize("text", ["{policy: p.yaml, peers: {}}\n", "peers: &a {}\nb: *a\n", "peers: {\n}\n", "- a\n"])
def test_text_with_peers_of_an_unusual_file_is_left_to_a_person(text: str) -> None:
    with pytest.raises(PeersFileError):
        text_with_peers(text, {"ucsf": PIN})
