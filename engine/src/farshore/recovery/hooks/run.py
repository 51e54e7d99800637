"""Runs one file of tasks: makes a folder for it, begins it as its user, watches it, and removes all of it again."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import selectors
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from farshore.errors import Permanent, Unavailable
from farshore.model.hooks import CONTEXT
from farshore.model.task import HookResult
from farshore.recovery.hooks.output import SHORTEST_SECRET, Output

#: Whom a node runs hooks as where it is root and its settings name nobody; the role ``replication_node`` makes it.
HOOK_USER: Final = "farshore-hooks"
#: Where their files lie then; the node's own folder is closed to that user.
WORK_DIR: Final = Path("/var/lib/farshore-hooks")
#: Written to standard output; nobody reads more, and the node reads all of it.
MOST_OUTPUT_BYTES: Final = 32 * 1024 * 1024
#: One file, and all files of a run together, the hook's own artefacts included.
LARGEST_FILE_BYTES: Final = 64 * 1024 * 1024
MOST_FILES_BYTES: Final = 256 * 1024 * 1024
#: Of one process. Ansible takes some 150 MiB; what reads gigabytes into memory ends with an error of its own.
MOST_MEMORY_BYTES: Final = 2 * 1024 * 1024 * 1024
MOST_PROCESSES: Final = 512
assert LARGEST_FILE_BYTES < MOST_FILES_BYTES < MOST_MEMORY_BYTES  # noqa: S101
#: Secrets that SSH goes by where a hook names them: a private key, and the keys of hosts.
SSH_KEY: Final = "ssh_key"
KNOWN_HOSTS: Final = "known_hosts"
#: How long the supervisor gets to kill what the hook has begun.
_KILL_S: Final = 20.0
_LOOK_S: Final = 0.2
_MEASURE_S: Final = 2.0
_LARGEST_RESULT_BYTES: Final = 64 * 1024
_HERE: Final = Path(__file__).parent

Killed = Literal["", "timeout", "output", "files", "cancel"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a node runs hooks. ``user``: None where the node is not root, and so can be nobody else.

    ``owner`` begins the names of its folders in ``work_dir``, which nodes may share.
    """

    work_dir: Path
    user: str | None
    python: str = sys.executable
    owner: str = "run"


@dataclass(frozen=True, slots=True)
class Job:
    """One file of tasks with what it is given. ``host``: the machine that the tasks are played on, None: the node."""

    files: Mapping[str, bytes]
    file: str
    timeout_s: float
    context: Mapping[str, Any] = field(default_factory=dict)
    vars: Mapping[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    host: str | None = None


class _Plain(str):
    """Text that Ansible is not to read as a template."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Writes the variables."""


_Dumper.add_representer(_Plain, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text)))


def run(job: Job, settings: Settings, *, clock: Callable[[], float], is_cancelled: Callable[[], bool]) -> HookResult:
    """Play a file of tasks and say how it ended; everything that it began is gone then.

    Raises:
        Permanent: it could not be begun, and never will: file, user, program or secret are not right.
        Unavailable: the run was cancelled.
    """
    if job.file not in job.files:
        raise Permanent(
            f"the hooks' files hold no {job.file}",
            code="hook-file-missing",
            hint="Apply the plan again from where its files are.",
        )
    for name, secret in job.secrets.items():
        if len(secret.strip()) < SHORTEST_SECRET:
            raise Permanent(f"secret {name!r} is too short to be kept out of the output", code="secret-too-short")
    identity = _identity(settings.user)
    began = clock()
    folder = _folder(settings, identity)
    try:
        _write(folder, job, settings, identity)
        output = Output(job.secrets.values())
        told, killed = _play(folder, job, settings, identity, output, clock, is_cancelled)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if killed == "cancel":
        raise Unavailable("the hook was cancelled, and all that it had begun was killed", code="cancelled")
    return HookResult(
        ok=not killed and told.get("status") == "successful",
        summary=_summary(told, killed, job, output),
        seconds=round(clock() - began, 3),
        user=identity.name,
        killed=killed,
        done=int(told.get("ok") or 0),
        changed=int(told.get("changed") or 0),
        output=output.text(),
        output_bytes=output.written_bytes,
    )


@dataclass(frozen=True, slots=True)
class _Identity:
    name: str
    uid: int | None
    gid: int | None


def _identity(user: str | None) -> _Identity:
    """Return whom hooks run as. Only root can become another."""
    if user is None:
        return _Identity(_name(os.geteuid()), None, None)
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise Permanent(
            f"this node has no user {user!r} to run hooks as",
            code="hook-user-missing",
            hint="Make it (the role replication_node does), or name another one under hooks in the node's file.",
        ) from None
    if entry.pw_uid == os.geteuid():
        return _Identity(user, None, None)
    if os.geteuid() != 0:
        raise Permanent(
            f"only root can run hooks as {user!r}; this node runs as {_name(os.geteuid())!r}",
            code="hook-user-impossible",
            hint="Leave hooks.user out, or run the node as root.",
        )
    return _Identity(user, entry.pw_uid, entry.pw_gid)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def why_not(settings: Settings) -> str:
    """Return why no hook can be played with these settings, as far as that shows beforehand; empty: one can."""
    try:
        identity = _identity(settings.user)
        if identity.uid is not None:
            _pass(settings.work_dir, identity.name)
    except Permanent as error:
        return error.message
    python = settings.python
    if python != sys.executable:
        return "" if os.access(python, os.X_OK) else f"{python} is no program that this node can run"
    lacks = [name for name in ("ansible", "ansible_runner") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(lacks)} is not installed: farshore[recovery] brings it" if lacks else ""


def clean(settings: Settings) -> None:
    """Remove what hooks have left that ended with their node: their folders hold secrets."""
    for left in settings.work_dir.glob(f"{settings.owner}-*"):
        shutil.rmtree(left, ignore_errors=True)


def _folder(settings: Settings, identity: _Identity) -> Path:
    """Make the folder of one run.

    Raises:
        Permanent: the hook's user could not get there.
    """
    work_dir = settings.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    if identity.uid is not None:
        # The hook's user passes through to its own folder; it sees no other one.
        work_dir.chmod(0o711)
        _pass(work_dir, identity.name)
    return Path(tempfile.mkdtemp(prefix=f"{settings.owner}-", dir=work_dir))


def _pass(work_dir: Path, user: str) -> None:
    closed = next(
        (folder for folder in work_dir.parents if folder.exists() and not folder.stat().st_mode & 0o001), None
    )
    if closed is not None:
        raise Permanent(
            f"user {user!r} cannot get to {work_dir}: {closed} is closed to it",
            code="hook-folder-closed",
            hint="Name another folder under hooks.work_dir in the node's file.",
        )


def _write(folder: Path, job: Job, settings: Settings, identity: _Identity) -> None:
    """Write all that the hook reads. The folder is given to its user last, so that no link of his is followed."""
    bundle = folder / "bundle"
    for path, content in job.files.items():
        target = bundle / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    secret_files = {}
    (folder / "secrets").mkdir(mode=0o700)
    for name, secret in job.secrets.items():
        secret_file = folder / "secrets" / name
        # A private key needs its last line break; a password has none.
        secret_file.write_text(secret + "\n" if "\n" in secret else secret, encoding="utf-8")
        secret_file.chmod(0o600)
        secret_files[name] = str(secret_file)
    (folder / "ssh_config").write_text(_ssh_config(folder, job.secrets), encoding="utf-8")
    variables = {
        **{name: _Plain(secret) for name, secret in job.secrets.items()},
        CONTEXT: _plain(dict(job.context)),
        f"{CONTEXT}_secret_files": _plain(secret_files),
        **job.vars,
    }
    machines = job.context.get("machines") or {}
    machine = job.context.get("machine")
    if machine:
        machines = {**machines, machine["name"]: machine}
    inventory = {
        "all": {
            "hosts": {"localhost": {"ansible_connection": "local", "ansible_python_interpreter": settings.python}},
            "children": {
                f"{CONTEXT}_machines": {
                    "hosts": {
                        name: {"ansible_host": _plain(item["address"])}
                        for name, item in machines.items()
                        if item.get("address")
                    }
                }
            },
        }
    }
    play = [
        {
            "name": job.file,
            "hosts": job.host or "localhost",
            "gather_facts": False,
            # The path has been checked: it holds no character that means something.
            "tasks": [{"ansible.builtin.import_tasks": f"bundle/{job.file}"}],
        }
    ]
    written: dict[str, Any] = {"variables.yml": variables, "inventory.yml": inventory, "play.yml": play}
    for name, values in written.items():
        text = yaml.dump(values, Dumper=_Dumper, allow_unicode=True, sort_keys=False)
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("home", "tmp"):
        (folder / name).mkdir(mode=0o700)
    if identity.uid is not None and identity.gid is not None:
        for below, folders, files in os.walk(folder, topdown=False):
            for entry in (*folders, *files):
                os.chown(Path(below) / entry, identity.uid, identity.gid, follow_symlinks=False)
        os.chown(folder, identity.uid, identity.gid)


def _ssh_config(folder: Path, secrets: Mapping[str, str]) -> str:
    """Return what SSH goes by. It looks for keys in the home that the system knows for a user, whatever HOME says."""
    key, hosts = (folder / "secrets" / name if name in secrets else None for name in (SSH_KEY, KNOWN_HOSTS))
    return f"""Host *
IdentityAgent none
IdentityFile {f'"{key}"' if key else "none"}
UserKnownHostsFile "{hosts or folder / "home/.ssh/known_hosts"}"
"""


def _plain(value: Any) -> Any:
    """Mark all text in ``value``: it comes from records, not from the author of the tasks."""
    if isinstance(value, str):
        return _Plain(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _play(
    folder: Path,
    job: Job,
    settings: Settings,
    identity: _Identity,
    output: Output,
    clock: Callable[[], float],
    is_cancelled: Callable[[], bool],
) -> tuple[dict[str, Any], Killed]:
    limits = {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": LARGEST_FILE_BYTES,
        "RLIMIT_AS": MOST_MEMORY_BYTES,
        # Counted per user: only where the user has nothing else that runs.
        **({"RLIMIT_NPROC": MOST_PROCESSES} if identity.uid is not None else {}),
    }
    order: dict[str, Any] = {
        "cwd": str(folder),
        "uid": identity.uid,
        "gid": identity.gid,
        "env": _environment(folder, job, settings, identity),
        "limits": limits,
    }
    reading, writing = os.pipe()
    order["result_fd"] = writing
    order["argv"] = [settings.python, "-I", str(_HERE / "play.py"), str(folder), str(writing)]
    try:
        with subprocess.Popen(
            [sys.executable, "-I", str(_HERE / "supervise.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"LC_ALL": "C.UTF-8"},
            pass_fds=(writing,),
            start_new_session=True,
        ) as process:
            os.close(writing)
            writing = -1
            return _watch(
                process, reading, json.dumps(order).encode() + b"\n", job, folder, output, clock, is_cancelled
            )
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def _watch(
    process: subprocess.Popen[bytes],
    reading: int,
    order: bytes,
    job: Job,
    folder: Path,
    output: Output,
    clock: Callable[[], float],
    is_cancelled: Callable[[], bool],
) -> tuple[dict[str, Any], Killed]:
    """Take what the hook writes until it has ended, or end it; return what it told and why it was killed."""
    if process.stdin is None or process.stdout is None:
        raise ValueError("the supervisor has no pipes")
    process.stdin.write(order)
    process.stdin.flush()
    ends_at = clock() + job.timeout_s
    gives_up_at: float | None = None
    measure_at = clock() + _MEASURE_S
    result = bytearray()
    killed: Killed = ""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout.fileno(), selectors.EVENT_READ)
        selector.register(reading, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(_LOOK_S):
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fd)
                elif key.fd == reading:
                    result += data[: _LARGEST_RESULT_BYTES - len(result)]
                else:
                    output.feed(data)
            now = clock()
            if gives_up_at is not None:
                if now >= gives_up_at:
                    process.kill()
                    break
                continue
            if is_cancelled():
                killed = "cancel"
            elif now >= ends_at:
                killed = "timeout"
            elif output.written_bytes > MOST_OUTPUT_BYTES:
                killed = "output"
            elif now >= measure_at:
                killed = "files" if _size(folder) > MOST_FILES_BYTES else ""
                measure_at = clock() + _MEASURE_S
            if killed:
                process.stdin.close()
                gives_up_at = now + _KILL_S
    try:
        told = json.loads(result)
    except ValueError:
        told = {}
    return told if isinstance(told, dict) else {}, killed


def _size(folder: Path) -> int:
    """Return how much a folder holds; what goes away meanwhile counts nothing."""
    total = 0
    for below, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(below) / name).lstat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _environment(folder: Path, job: Job, settings: Settings, identity: _Identity) -> dict[str, str]:
    """Return the whole environment of a hook: nothing of the node's own, which is none of its business."""
    top = folder / "bundle" / job.file.partition("/")[0] if "/" in job.file else folder / "bundle"
    return {
        "PATH": f"{Path(settings.python).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "USER": identity.name,
        "LOGNAME": identity.name,
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_HOME": str(folder / "home" / ".ansible"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_REMOTE_TEMP": "~/.ansible/tmp",
        "ANSIBLE_ROLES_PATH": f"{top}/roles",
        "ANSIBLE_COLLECTIONS_PATH": f"{top}/collections:/usr/share/ansible/collections",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "ANSIBLE_PIPELINING": "1",
        # ansible-runner would switch it off: whoever answers would be given the password.
        "ANSIBLE_HOST_KEY_CHECKING": "1",
        # No connection is kept for later: its socket's path would be too long in the folder of a node with a long name.
        "ANSIBLE_SSH_ARGS": f"-C -F {shlex.quote(str(folder / 'ssh_config'))}",
    }


def _summary(told: Mapping[str, Any], killed: Killed, job: Job, output: Output) -> str:
    if killed == "timeout":
        return f"not through within {job.timeout_s:g} s; it was killed, with all that it had begun"
    if killed == "output":
        return f"it wrote more than {MOST_OUTPUT_BYTES >> 20} MiB and was killed"
    if killed == "files":
        return f"its files grew beyond {MOST_FILES_BYTES >> 20} MiB and it was killed"
    status = told.get("status")
    if status == "successful":
        return f"{told.get('ok', 0)} tasks well, {told.get('changed', 0)} of them changed something"
    if status == "missing":
        return f"this node cannot play tasks: {told.get('message')}; install farshore[recovery]"
    failed = told.get("failed") or []
    if failed and isinstance(failed[-1], dict):
        text = f"task {str(failed[-1].get('task'))!r} failed: {failed[-1].get('message')}"
        return output.mask(text.encode()).decode(errors="replace")[:500]
    if status:
        return f"ansible ended with status {told.get('status_code')}; its output says more"
    return "it ended without a result; its output says more"
