"""The hook's own process: plays a file of tasks with ansible-runner and tells how it ended.

Runs as the hook's user, by whatever interpreter the node names; it needs the standard library and ansible-runner alone.
Arguments: the folder of the run, and the file descriptor that takes the result as JSON. Events go to standard output.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main(folder: str, result_fd: int) -> int:
    """Play ``play.yml`` of the folder."""
    os.set_inheritable(result_fd, False)
    try:
        import ansible_runner
    except ImportError as error:
        return _tell(result_fd, {"status": "missing", "message": str(error)})
    failed: list[dict[str, str]] = []
    stats: dict[str, dict[str, int]] = {}

    def told(event: dict[str, Any]) -> bool:
        text = event.get("stdout") or ""
        if text:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()
        data = event.get("event_data") or {}
        if event.get("event") == "playbook_on_stats":
            stats.update({name: data.get(name) or {} for name in ("ok", "changed")})
        if event.get("event") in ("runner_on_failed", "runner_on_unreachable") and not data.get("ignore_errors"):
            result = data.get("res") or {}
            message = result.get("msg") if isinstance(result, dict) else ""
            failed.append({"task": str(data.get("task") or ""), "message": str(message or "")[:2000]})
        return False  # no event is written to a file

    done = ansible_runner.run(
        private_data_dir=folder,
        ident="run",
        binary=sys.executable,
        cmdline="-I -m ansible playbook -i inventory.yml -e @variables.yml play.yml",
        project_dir=folder,
        quiet=True,
        event_handler=told,
        settings={"suppress_ansible_output": True, "suppress_output_file": True, "suppress_env_files": True},
        envvars={"ANSIBLE_NOCOLOR": "1"},
    )
    return _tell(
        result_fd,
        {
            "status": done.status,
            "status_code": done.rc,
            "ok": sum(stats.get("ok", {}).values()),
            "changed": sum(stats.get("changed", {}).values()),
            "failed": failed[-1:],
        },
    )


def _tell(result_fd: int, result: dict[str, Any]) -> int:
    with os.fdopen(result_fd, "w", encoding="utf-8") as out:
        json.dump(result, out)
    return 0 if result["status"] == "successful" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
