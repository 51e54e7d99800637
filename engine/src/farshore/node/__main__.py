"""``python -m farshore.node --config FILE``: one node in the foreground, what service managers start."""

from __future__ import annotations

import argparse
import faulthandler
import signal
import sys
from pathlib import Path

from farshore.errors import FarshoreError
from farshore.node import config, daemon, log


def main(argv: list[str] | None = None) -> int:
    """Run a node; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m farshore.node", description=__doc__)
    parser.add_argument("--config", type=Path, default=config.DEFAULT_PATH)
    path: Path = parser.parse_args(argv).config
    # `kill -USR1` shows in the log where every thread is: code only, no values.
    faulthandler.register(signal.SIGUSR1)
    try:
        settings = config.load(path)
        log.configure(settings.log_level)
        return daemon.run(settings)
    except FarshoreError as error:
        print(error, file=sys.stderr)  # noqa: T201 - this is the command line
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
