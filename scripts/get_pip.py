"""Put pip into a fresh virtual environment from what Python brings along, with no download of a script.

ansible-test runs this in each environment that it makes, in place of the script that it would fetch from its own site;
it passes pip's options and the packages to install. It has cleared the environment before, so the machine's authorities
go into the virtual environment's own pip.conf.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")

packages = [word for word in sys.argv[1:] if not word.startswith("-")]
if AUTHORITIES.exists():
    (Path(sys.prefix) / "pip.conf").write_text(f"[global]\ncert = {AUTHORITIES}\n", encoding="utf-8")
# In a process of its own, since ensurepip turns off pip.conf for the process that it runs in.
subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], check=True, stdout=subprocess.DEVNULL)
subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
