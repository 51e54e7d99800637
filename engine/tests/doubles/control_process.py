"""A real control plane on loopback, in a process of its own, with a client of it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from doubles.ports import free_port
from doubles.scripted_node import ScriptedNode
from farshore.control import home as homes


def until(check: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Return the first true answer of ``check``; fails with ``what`` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = check()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {timeout_s:.0f} s")


class Control:
    """One control plane's process and a client of it."""

    def __init__(self, path: Path) -> None:
        self.home = homes.initialise(path, port=free_port(), node_port=free_port())
        self.process: subprocess.Popen[bytes] | None = None
        self.token = self.home.environment()["FARSHORE_TOKEN"]

    def start(self) -> Control:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "farshore.control.server", "--home", str(self.home.path)],
            stdin=subprocess.DEVNULL,
            stdout=self.home.log.open("ab"),
            stderr=subprocess.STDOUT,
        )
        until(self._answers, "control plane starts", 120)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"control plane ended: {self.home.log.read_text()[-2000:]}")
        with contextlib.suppress(requests.RequestException):
            return self.call("GET", "/health", token="").ok
        return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the control plane did not stop:\n{self.log()[-8000:]}") from None

    def call(self, method: str, path: str, body: Any = None, *, token: str | None = None, **more: Any) -> Any:
        headers = more.pop("headers", {})
        token = self.token if token is None else token
        if token:
            headers["Authorization"] = f"Bearer {token}"
        url = path if path.startswith("https:") else f"{self.home.url}/api/v1{path}"
        return requests.request(
            method, url, json=body, headers=headers, verify=str(self.home.ca), timeout=more.pop("timeout", 90), **more
        )

    def ok(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        answer = self.call(method, path, body, **more)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def refused(self, status: int, code: str, method: str, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
        answer = self.call(method, path, body, **more)
        assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
        assert answer.headers["content-type"].startswith("application/problem+json")
        return dict(answer.json())

    def role(self, role: str, **more: Any) -> str:
        return str(self.ok("POST", "/tokens", {"name": f"a-{role}", "role": role, **more})["token"])

    def node(self, folder: Path, name: str, site: str, *, port: int = 9101, enrol: bool = True) -> ScriptedNode:
        self.ok("PUT", f"/sites/{site}", {"platform": "file"})
        self.ok(
            "PUT",
            f"/nodes/{name}",
            {"site": site, "roles": ["replication", "recovery"], "data_address": f"127.0.0.1:{port}"},
        )
        node = ScriptedNode(folder / name, self.home.node_url, self.home.ca, name=name, site=site)
        if enrol:
            answer = node.enrol(self.ok("POST", f"/nodes/{name}:token")["token"])
            assert answer.ok, answer.text
        return node

    def log(self) -> str:
        return self.home.log.read_text()
