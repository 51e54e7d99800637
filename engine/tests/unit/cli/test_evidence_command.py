"""``farshore evidence verify``: offline, with statuses, saying what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from farshore.cli.main import main
from farshore.errors import Corruption, NotFound
from farshore.recovery import evidence

KEY = Ed25519PrivateKey.generate()


def body(run_id: str) -> dict[str, Any]:
    run = {
        "run_id": run_id,
        "kind": "drill",
        "plan": "shop",
        "state": "succeeded",
        "ended_at": "2026-01-31T08:00:00Z",
        "steps": [],
        "machines": [],
        "cycles": [],
    }
    return {"run": run, "plan": {"revision": 1, "digest": "d", "source_site": "a", "target_site": "b"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a chain of three reports, and what lies beside them."""
    previous = evidence.ORIGIN
    for position in (1, 2, 3):
        content = body(f"run-{position}")
        texts = evidence.render(content, position, previous)
        report = evidence.seal(content, position=position, previous=previous, key=KEY, renderings=texts)
        previous = report["digest"]
        (tmp_path / f"run-{position}.json").write_bytes(evidence.encode(report))
        (tmp_path / f"run-{position}.html").write_text(texts["html"])
        (tmp_path / f"run-{position}.xml").write_text(texts["junit"])
    (tmp_path / "key.pem").write_text(evidence.pem(KEY.public_key()))
    return tmp_path


def verify(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["--json", "evidence", "verify", *map(str, arguments)])
    return int(caught.value.code or 0)


def test_a_report_that_is_whole_is_said_to_be_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = json.loads((folder / "run-3.json").read_bytes())["digest"]
    assert verify(folder / "run-2.json", "--key", folder / "key.pem", "--chain", folder, "--head", newest) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verified"], told["trusted"], told["chain"], told["run_id"]) == (True, True, 3, "run-2")
    assert len(told["beside"]) == 2
    assert verify(folder / "run-2.json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["trusted"] is False
    assert "not who wrote it" in captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert verify(*arguments) == Corruption.exit_status
    return str(json.loads(capsys.readouterr().err.splitlines()[-1])["code"])


def test_each_change_has_its_own_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, key = folder / "run-2.json", folder / "key.pem"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"succeeded", b"Succeeded"))
    assert refused(capsys, file, "--key", key) == "report-changed"
    file.write_bytes(whole + b"\n")
    assert refused(capsys, file) == "report-changed"
    file.write_bytes(whole)
    (folder / "run-2.html").write_text("<html>all went well</html>")
    assert refused(capsys, file, "--key", key) == "rendering-changed"
    (folder / "run-2.html").unlink()
    (folder / "other.pem").write_text(evidence.pem(Ed25519PrivateKey.generate().public_key()))
    assert refused(capsys, file, "--key", folder / "other.pem") == "report-forged"
    assert refused(capsys, file, "--key", file) == "key-invalid"
    assert verify(folder / "nothing.json") == NotFound.exit_status


def test_a_cut_chain_is_found_at_each_end_and_in_the_middle(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = json.loads((folder / "run-3.json").read_bytes())["digest"]
    (folder / "run-1.json").rename(folder / "run-1.gone")
    assert refused(capsys, folder / "run-2.json", "--chain", folder) == "report-chain-cut"
    assert verify(folder / "run-2.json", "--chain", folder, "--partial") == 0
    (folder / "run-1.gone").rename(folder / "run-1.json")
    (folder / "run-3.json").rename(folder / "run-3.gone")
    assert refused(capsys, folder / "run-2.json", "--chain", folder, "--head", newest) == "report-chain-cut"
    (folder / "run-3.gone").rename(folder / "run-3.json")
    (folder / "run-2.json").unlink()
    assert refused(capsys, folder / "run-3.json", "--chain", folder) == "report-chain-cut"
