"""Put a bug into the data path and see how many schedules it takes to be found.

    python -m sim.hunt NAME            play schedules until it is found, at most its bound
    python -m sim.hunt --all           all of them, by as many processes as there are cores
    python -m sim.hunt --measure 1000 [NAME...]  how often it is found in so many schedules; writes it down

A bug is a file in ``bugs/``: the module, what its text is there and what it becomes, and what was measured.
"""

from __future__ import annotations

import argparse
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Measuring ends when it was found so often.
ENOUGH = 6
FOLDER = Path(__file__).with_name("bugs")


@dataclass(frozen=True)
class Bug:
    """A mutation.

    ``edits``: module, what its text is there, and what it becomes.
    ``share``: of the schedules that were played to measure it, how many found it; 0 where none has yet.
    ``theme``: what all schedules are about in which it is looked for; empty where they are drawn as always.
    """

    name: str
    about: str
    edits: tuple[tuple[str, str, str], ...]
    share: float
    quick: bool
    theme: str = ""

    @property
    def bound(self) -> int:
        """Schedules in which it has to be found: by chance it is missed once in a hundred thousand times."""
        return max(150, int(12.0 / self.share)) if self.share else 5000

    @property
    def modules(self) -> list[str]:
        """The modules that it changes."""
        return sorted({module for module, _, _ in self.edits})

    def apply(self, module: str, source: str) -> str:
        """Return a module's text with the bug in it.

        Raises:
            ValueError: the text to replace is not there, or more than once.
        """
        for of, old, new in self.edits:
            if of != module:
                continue
            if source.count(old) != 1:
                raise ValueError(f"bug {self.name}: its text is {source.count(old)} times in {module}:\n{old}")
            source = source.replace(old, new)
        return source


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def load(name: str) -> Bug:
    body: dict[str, Any] = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    edits = tuple((edit.get("module", body["module"]), edit["old"], edit["new"]) for edit in body["edits"])
    share = float(body.get("found", 0)) / float(body.get("of", 1))
    return Bug(name, body["about"], edits, share, bool(body.get("quick", False)), body.get("theme", ""))


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


class _Loader(importlib.machinery.SourceFileLoader):
    bug: Bug

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        source = self.bug.apply(fullname, Path(path).read_text(encoding="utf-8"))
        return compile(source, path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, bug: Bug) -> None:
        self._bug = bug

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname not in self._bug.modules:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        loader = _Loader(fullname, spec.origin)
        loader.bug = self._bug
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=loader)


def _play(bug: Bug, first: int, count: int, *, stop: bool) -> tuple[int, int, str]:
    """Return schedules played, how many found it, and what the first one said."""
    if any(name.startswith("farshore") for name in sys.modules):
        raise AssertionError("a bug goes in before the module is loaded")
    sys.meta_path.insert(0, _Finder(bug))
    from sim import world
    from sim.runtime import Violation

    if bug.theme:
        world.THEMED, world.THEMES = 1.0, {bug.theme: world.THEMES[bug.theme]}
    found = played = 0
    said = ""
    with world.stage():
        for seed in range(first, first + count):
            played += 1
            try:
                world.play(seed)
            except Violation as violation:
                found += 1
                said = said or f"seed {seed}: {str(violation).splitlines()[0][:160]}"
                if stop or (found >= ENOUGH and played >= 25):
                    break
            if played % 50 == 0:
                gc.collect()
    return played, found, said


def _write_down(bug: Bug, found: int, of: int, said: str) -> None:
    path = FOLDER / f"{bug.name}.toml"
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^(found|of|quick|said) = .*\n", "", text)
    head, mark, tail = text.partition("\n[[edits]]")
    quick = "true" if found and of / found <= 40 else "false"
    said = re.sub(r"seed \d+: ", "", said).replace('"', "'")
    path.write_text(
        f'{head.rstrip()}\nfound = {found}\nof = {of}\nquick = {quick}\nsaid = "{said}"\n{mark}{tail}', encoding="utf-8"
    )


def _in_child(name: str, arguments: list[str]) -> tuple[str, int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sim.hunt", name, *arguments], capture_output=True, text=True, check=False
    )
    return name, done.returncode, done.stdout + done.stderr[-2000:]


def main() -> int:
    parser = argparse.ArgumentParser(prog="hunt")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--quick", action="store_true", help="those that are found in few schedules")
    parser.add_argument("--measure", type=int, default=0)
    parser.add_argument("--seed", type=int, default=500_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    known = [load(name) for name in names()]
    chosen = arguments.names or [
        bug.name for bug in known if bug.quick or arguments.measure or (arguments.all and bug.share)
    ]
    if len(chosen) > 1:
        passed_on = [f"--seed={arguments.seed}", f"--measure={arguments.measure}"]
        missed = []
        with ThreadPoolExecutor(arguments.jobs) as workers:
            for name, status, text in workers.map(lambda one: _in_child(one, passed_on), chosen):
                say(text.strip())
                if status:
                    missed.append(name)
        say(f"{len(chosen) - len(missed)} of {len(chosen)} bugs were found{', not: ' if missed else ''}{missed or ''}")
        return 1 if missed else 0
    bug = load(chosen[0])
    began = time.monotonic()
    count = arguments.measure or bug.bound
    played, found, said = _play(bug, arguments.seed, count, stop=not arguments.measure)
    seconds = time.monotonic() - began
    say(f"{bug.name:28} found {found} times in {played} schedules, {seconds:.0f} s; {said}")
    if arguments.measure:
        _write_down(bug, found, played, said)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
