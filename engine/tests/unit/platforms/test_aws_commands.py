"""What is run by Systems Manager: scripts that are always the same, and answers that are whole, or told to be cut."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from farshore.errors import Permanent, Retry
from farshore.platforms.aws import agent, helper, probing
from farshore.platforms.aws.commands import OUTPUT_CHARS, Ended

WORDS = ["/bin/echo", 'it\'s "$(id)" `id` {{ssm:x}} %s \\', "two\nlines\n", ""]


@pytest.mark.parametrize("platform", ["Linux", "Windows"])
def test_no_word_of_a_command_is_to_be_seen_in_the_script(platform: str) -> None:
    lines = "\n".join(agent.script(platform, WORDS))
    for secret in ("$(id)", "`id`", "{{", "two"):
        assert secret not in lines
    other = "\n".join(agent.script(platform, ["/bin/false", *("x" for _ in WORDS[1:])]))
    assert len(lines.splitlines()) == len(other.splitlines())


def test_a_script_runs_the_words_as_they_are(tmp_path: Path) -> None:
    show = tmp_path / "show"
    show.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(194)\n")
    show.chmod(0o755)
    lines = "\n".join(agent.script("Linux", [str(show), *WORDS]))
    done = subprocess.run(["sh", "-c", lines], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = agent.outcome("i-1", Ended(0, done.stdout, ""))
    assert (found["exited"], found["exitcode"]) == (True, 194)
    assert json.loads(base64.b64decode(found["out-data"])) == WORDS


def test_what_a_windows_machine_is_told_is_one_program_and_one_line_of_arguments() -> None:
    lines = agent.script("Windows", ["C:\\check.exe", "a b", 'say "x"'])
    coded = re.search(r"'([^']*)'\.Split", lines[0])
    assert coded is not None
    assert [base64.b64decode(word).decode() for word in coded[1].split()] == ["C:\\check.exe", '"a b" "say \\"x\\""']
    assert "".join(lines).count("{") == "".join(lines).count("}")
    alone = agent.script("Windows", ["C:\\check.exe"])
    assert "''" not in alone[0]
    with pytest.raises(Permanent, match="MacOS"):
        agent.script("MacOS", ["/bin/true"])


@pytest.mark.parametrize("output", ["", "0", "0\n***", "x\nQQ=="])
def test_a_script_that_did_not_get_to_the_command_is_no_result(output: str) -> None:
    if output == "0":
        assert agent.outcome("i-1", Ended(0, output, ""))["exitcode"] == 0
        return
    with pytest.raises(Retry, match="mktemp"):
        agent.outcome("i-1", Ended(0, output, "mktemp: no room"))


def test_output_fits_into_what_is_handed_back() -> None:
    data = os.urandom(64 * 1024)
    packed = probing.packed(data)
    kept = zlib.decompress(base64.b64decode(packed["data"]))
    assert data.startswith(kept)
    assert len(kept) + packed["missing"] == len(data)
    assert len(json.dumps({**packed, "errno": 110, "error": "x" * 100, "root": True})) < OUTPUT_CHARS
    text = b"all work and no play " * 3000
    assert probing.packed(text)["missing"] == 0
    lines = "\n".join(agent.script("Linux", ["/usr/bin/head", "-c", "99999", "/dev/urandom"]))
    done = subprocess.run(["sh", "-c", lines], capture_output=True, check=False)
    assert 16_000 < len(done.stdout) < OUTPUT_CHARS


@pytest.mark.parametrize(
    "said", [{}, {"data": "no base64"}, {"data": base64.b64encode(b"not packed").decode()}, {"data": None}]
)
def test_an_answer_that_is_none_is_said_to_be(said: dict[str, Any]) -> None:
    with pytest.raises(Permanent, match="is not one"):
        helper._answer(said, 100)


def test_no_more_is_taken_of_an_answer_than_was_asked_for() -> None:
    bomb = base64.b64encode(zlib.compress(b"x" * 10_000_000)).decode()
    assert helper._answer({"data": bomb}, 100).data == b"x" * 100
    cut = helper._answer({**probing.packed(os.urandom(64 * 1024))}, 64 * 1024)
    assert "bytes are missing" in str(cut.error)
    refused = helper._answer({**probing.packed(b"so far"), "errno": 111, "error": "Connection refused"}, 100)
    assert (refused.data, type(refused.error)) == (b"so far", ConnectionRefusedError)


def test_the_helper_gets_one_line_that_no_shell_reads_anything_in() -> None:
    assert helper._LINE.count("{}") == 2
    wish = {"address": "10.0.0.1'; reboot #"}
    coded = base64.b64encode(json.dumps(wish).encode()).decode()
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", coded)
