"""Plans with hooks from the command line: what is sent with them, and what is not."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
from doubles.cli_documents import plan
from doubles.cli_server import Api, Result
from farshore.cli.remote import hook_files
from farshore.errors import Invalid

Cli = Callable[..., Result]

TEXT = "name: shop\nhooks: {pre_drill: hooks/a.yml, post_drill: gate}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in ("hooks/a.yml", "hooks/templates/x.j2", "hooks/.git/config", "hooks/a.yml~", "other/c.yml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / "shop.yml").write_text(TEXT)
    return tmp_path


def test_the_folders_of_hooks_are_sent_with_the_plan(api: Api, cli: Cli, root: Path) -> None:
    api.on("POST", "/plans/shop:preview", {"changed": True, "before": None, "after": {}, "files": ["hooks/a.yml"]})
    api.on("PUT", "/plans/shop", plan(), X_Farshore_Changed="true")
    assert cli("plan", "apply", str(root / "shop.yml")).status == 0
    sent = api.sent("PUT")[0].body
    assert sent["source"] == TEXT
    assert sorted(sent["files"]) == ["hooks/a.yml", "hooks/templates/x.j2"]
    assert base64.b64decode(sent["files"]["hooks/a.yml"]) == b"hooks/a.yml"


@pytest.mark.parametrize("link", ["hooks/link.yml", "hooks/folder", "linked"])
def test_a_link_is_refused(root: Path, link: str) -> None:
    (root / link).symlink_to("/etc")
    named = ["hooks/a.yml"] if link.startswith("hooks") else ["linked/a.yml"]
    with pytest.raises(Invalid, match="is a link"):
        hook_files.collect(root, named)


def test_a_file_that_is_missing_is_for_the_control_plane_to_name(root: Path) -> None:
    assert hook_files.collect(root, ["gone/d.yml", "e.yml"]) == {}


def test_a_report_is_fetched_as_junit_and_the_key_as_a_file(api: Api, cli: Cli, tmp_path: Path) -> None:
    api.on("GET", "/runs/run-1/report.xml", "<testsuites/>")
    cli("run", "report", "run-1", "--output", str(tmp_path / "r.xml"))
    assert (tmp_path / "r.xml").read_text() == "<testsuites/>"
    api.on("GET", "/evidence-key", {"pem": "PEM\n", "fingerprint": "SHA256:x"})
    assert cli("--json", "evidence", "key", "--output", str(tmp_path / "key.pem")).document["fingerprint"] == "SHA256:x"
    assert (tmp_path / "key.pem").read_text() == "PEM\n"
