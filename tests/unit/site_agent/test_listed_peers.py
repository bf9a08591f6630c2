from __future__ import annotations

from pathlib import Path

from site_agent.listed_peers import ListedPeers

FIRST, SECOND = "a1" * 32, "b2" * 32


def test_peer_that_is_added_or_removed_counts_at_the_next_question(tmp_path: Path) -> None:
    listed = ListedPeers(tmp_path)
    place = tmp_path / "site.yaml"
    place.write_text(f"peers: {{charite: {FIRST}}}\n")
    assert listed() == {"charite": FIRST}
    place.write_text(f"peers: {{charite: {FIRST}, ucsf: {SECOND}}}\n")
    assert listed() == {"charite": FIRST, "ucsf": SECOND}
    place.write_text("peers: {}\n")
    assert listed() == {}


def test_broken_or_missing_file_lists_nobody_and_is_told_once(tmp_path: Path, capsys) -> None:  # noqa: ANN001 - pytest's
    listed = ListedPeers(tmp_path)
    place = tmp_path / "site.yaml"
    place.write_text("peers: [charite]\n")
    assert listed() == {}
    assert listed() == {}
    assert capsys.readouterr().out.count("peers_unreadable") == 1
    place.unlink()
    assert listed() == {}
    place.write_text(f"peers: {{charite: {FIRST}}}\n")
    assert listed() == {"charite": FIRST}
