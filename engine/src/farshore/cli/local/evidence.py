"""``farshore evidence``: checks reports of runs, anywhere: it needs the files and a public key, no control plane."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from farshore.cli.context import shell
from farshore.cli.output import facts
from farshore.errors import Corruption, FarshoreError, Invalid, NotFound

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

app = typer.Typer(
    help="Evidence of runs: check reports offline, and get the key to check them with.", no_args_is_help=True
)

#: Reports of runs with a thousand machines have some 5 MiB.
_LARGEST_BYTES: Final = 256 * 1024 * 1024
_BESIDE: Final = {"html": (".html", ".htm"), "junit": (".xml",)}


def _load(path: Path, what: str) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise Invalid(f"{path} is too large to be {what}", code="file-too-large", file=str(path))
        return path.read_bytes()
    except OSError as error:
        raise NotFound(
            f"{path} cannot be read: {error.strerror}", code="file-unreadable", hint=f"Name the file of {what}."
        ) from error


def _of_file(error: FarshoreError, path: Path) -> FarshoreError:
    error.message = f"{path}: {error.message}"
    error.evidence.setdefault("file", str(path))
    return error


def _read(path: Path, key: Ed25519PublicKey | None) -> dict[str, Any]:
    from farshore.recovery import evidence

    data = _load(path, "a report")
    try:
        report = evidence.read(data)
        evidence.verify(report, key)
    except Corruption as error:
        raise _of_file(error, path) from None
    return report


def _chain(folder: Path, key: Ed25519PublicKey | None, named: dict[str, Any], *, partial: bool) -> int:
    """Check all reports of a folder as one chain that ``named`` belongs to; return how many they are."""
    from farshore.recovery import evidence

    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}", code="file-unreadable", hint="Name the folder of the reports.")
    found = {}
    for path in sorted(folder.glob("*.json")):
        report = _read(path, key)
        found[path] = report
    reports = sorted(found.values(), key=lambda report: int(report["position"]))
    if all(report["digest"] != named["digest"] for report in reports):
        reports = sorted([*reports, named], key=lambda report: int(report["position"]))
    evidence.verify_chain(reports, key, from_origin=not partial)
    return len(reports)


@app.command()
def verify(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A report as JSON.")],
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", help="Public key of the control plane (PEM). Without it the report is only held against its own."
        ),
    ] = None,
    chain: Annotated[
        Path | None, typer.Option("--chain", help="Folder with all reports of the control plane: none may be missing.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="The chain may begin later than with the first report.")
    ] = False,
    head: Annotated[
        str | None,
        typer.Option("--head", help="Digest of the newest report, written down elsewhere: the end of the chain."),
    ] = None,
) -> None:
    """Check that a report, and its page and JUnit file beside it, are what was signed. Needs no control plane.

    Exit status 0: nothing was changed. Else the message says what was, and where.
    """
    from farshore.recovery import evidence

    here = shell(ctx)
    public = None
    if key is not None:
        try:
            public = evidence.load_key(_load(key, "a public key"))
        except Corruption as error:
            raise _of_file(error, key) from None
    report = _read(file, public)
    beside = []
    for name, suffixes in _BESIDE.items():
        for suffix in suffixes:
            path = file.with_suffix(suffix)
            if path != file and path.exists():
                try:
                    evidence.verify_rendering(report, name, _load(path, f"a {name} file"))
                except Corruption as error:
                    raise _of_file(error, path) from None
                beside.append(str(path))
    if head is not None and chain is None:
        raise Invalid("--head is the end of a chain; name its folder with --chain", code="usage", field="--head")
    count = _chain(chain, public, report, partial=partial) if chain is not None else None
    if head is not None and chain is not None:
        _ends_with(chain, public, report, head)
    carried = evidence.load_key(report["public_key"].encode())
    run = report["body"]["run"]
    if public is None:
        here.out.warn(
            "it was held against the key that it carries itself: that shows that it is whole, not who wrote it;"
            " get the key elsewhere and name it with --key"
        )
    here.out.show(
        {
            "file": str(file),
            "verified": True,
            "trusted": public is not None,
            "run_id": run["run_id"],
            "position": report["position"],
            "digest": report["digest"],
            "key": evidence.fingerprint(carried),
            "beside": beside,
            "chain": count,
        },
        lambda: facts(
            (
                ("report", f"{file}: unchanged"),
                ("run", f"{run['kind']} {run['run_id']} of {run['plan']}: {run['state']}, ended {run['ended_at']}"),
                ("position", report["position"]),
                ("digest", report["digest"]),
                ("key", evidence.fingerprint(carried)),
                ("beside it", ", ".join(beside) or None),
                ("chain", f"{count} reports, none missing between them" if count is not None else None),
            )
        ),
    )


def _ends_with(chain: Path, key: Ed25519PublicKey | None, named: dict[str, Any], head: str) -> None:
    reports = [named, *(_read(path, key) for path in sorted(chain.glob("*.json")))]
    newest = max(reports, key=lambda report: int(report["position"]))
    if newest["digest"] != head.strip().lower():
        raise Corruption(
            f"the chain ends with report {newest['position']}, which has another digest than the one given:"
            " newer reports are missing, or it is another chain",
            code="report-chain-cut",
            position=newest["position"],
        )


@app.command("key")
def key_of(
    ctx: typer.Context,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file, else to stdout.")] = None,
) -> None:
    """Get the public key that this control plane's reports are checked with."""
    here = shell(ctx)
    found = here.client.get("/evidence-key")
    if output is not None:
        from farshore import durable

        durable.write(output, found["pem"].encode(), mode=0o644)
        here.out.show(found | {"file": str(output)}, lambda: f"{output} holds the key {found['fingerprint']}")
    elif here.out.as_json:
        here.out.show(found, lambda: "")
    else:
        typer.echo(found["pem"], nl=False)
