"""A real node in a process of its own, on a platform of files."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml
from farshore.node import config, enrol, process
from farshore.node.config import NodeConfig


class NodeProcess:
    """One node of ``site``; its platform's root is ``folder/site``."""

    def __init__(self, folder: Path, name: str, site: str, control_url: str, port: int) -> None:
        self.name, self.site, self.port = name, site, port
        self.root = folder / site
        self.config_path = folder / f"{name}.yml"
        self.settings: dict[str, Any] = {
            "name": name,
            "site": site,
            "control_url": control_url,
            "state_dir": str(folder / f"{name}.state"),
            "data_listen": f"127.0.0.1:{port}",
            "poll_wait": "5s",
            "platform": {"type": "file", "root": str(self.root)},
        }
        self.write()
        self.log_path = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def write(self) -> None:
        self.config_path.write_text(yaml.safe_dump(self.settings))

    @property
    def config(self) -> NodeConfig:
        return config.load(self.config_path)

    @property
    def state(self) -> Path:
        return self.config.state_dir

    def enrol(self, token: str, **pin: Any) -> bool:
        return enrol.enrol(self.config, token, now=dt.datetime.now(dt.UTC), **pin)

    def start(self) -> NodeProcess:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                process.command(self.config_path), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            status = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop:\n{self._end_of_log()}") from None
        assert status == 0, f"{self.name} stopped with status {status}:\n{self._end_of_log()}"
        return status

    def _end_of_log(self) -> str:
        return self.log_path.read_text()[-16000:]

    def close(self) -> None:
        """End it if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def log(self) -> list[dict[str, Any]]:
        """Return what the node logged, without what else came to its output."""
        lines = self.log_path.read_text().splitlines() if self.log_path.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{")]

    def said(self, message: str, **values: Any) -> list[dict[str, Any]]:
        found = [line for line in self.log() if line["message"] == message]
        return [line for line in found if all(line.get(key) == value for key, value in values.items())]

    def await_said(self, message: str, timeout_s: float = 60, **values: Any) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := self.said(message, **values):
                return found[-1]
            assert self.process is None or self.process.poll() is None, f"the node ended:\n{self.log_path.read_text()}"
            time.sleep(0.02)
        raise AssertionError(f"{self.name} did not say {message!r}:\n{self.log_path.read_text()[-4000:]}")

    def secrets(self) -> list[str]:
        """Return texts that must appear nowhere."""
        return [line for line in (self.state / "node.key").read_text().splitlines() if not line.startswith("-")]


def environment() -> dict[str, str]:
    """Return the environment of a command line that finds no settings by itself."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FARSHORE_")}
