"""Bundles: the same files make the same bytes, and nothing in one leads elsewhere."""

from __future__ import annotations

import io
import tarfile

import pytest
from farshore.errors import Corruption, Invalid
from farshore.model.plan import Plan
from farshore.recovery import bundle
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

NAMES = st.from_regex(r"[a-z0-9_][a-z0-9._-]{0,8}(/[a-z0-9_][a-z0-9._-]{0,8}){0,2}", fullmatch=True)


@given(st.dictionaries(NAMES, st.binary(max_size=50), max_size=6))
def test_what_is_packed_comes_out_whatever_order_it_came_in(files: dict[str, bytes]) -> None:
    folders = {path.rpartition("/")[0] for path in files}
    if any(folder == path or folder.startswith(path + "/") for path in files for folder in folders):
        with pytest.raises(Invalid, match="a file and a folder"):
            bundle.pack(files)
        return
    tar = bundle.pack(files)
    assert bundle.pack(dict(reversed(files.items()))) == tar
    assert bundle.unpack(tar, bundle.digest_of(tar)) == files


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../up", "a/../b", "a//b", ".hidden", "a/.git/config", "a b", "a\n", "{{x}}", "", "a/", "ä"]
)
def test_a_path_that_means_something_else_is_refused(path: str) -> None:
    with pytest.raises(Invalid) as caught:
        bundle.pack({path: b""})
    assert caught.value.code == "hook-files-invalid"


def test_too_much_is_refused() -> None:
    with pytest.raises(Invalid, match="at most"):
        bundle.pack({"a": bytes(bundle.LARGEST_FILE_BYTES + 1)})
    with pytest.raises(Invalid, match="together"):
        bundle.pack({f"f{number}": bytes(bundle.LARGEST_FILE_BYTES) for number in range(5)})
    with pytest.raises(Invalid, match="files"):
        bundle.pack({f"f{number}": b"" for number in range(bundle.MOST_FILES + 1)})


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        entry("../x"),
        entry("/x"),
        entry("x", tarfile.SYMTYPE, "/etc/shadow"),
        entry("x", tarfile.CHRTYPE),
        b"no tar" * 200,
    ],
)
def test_an_archive_that_leads_elsewhere_is_no_bundle(content: bytes) -> None:
    with pytest.raises(Corruption):
        bundle.unpack(content, bundle.digest_of(content))


def test_another_bundle_is_not_taken_for_the_one_that_was_meant() -> None:
    tar = bundle.pack({"a.yml": b"1"})
    with pytest.raises(Corruption) as caught:
        bundle.unpack(tar, bundle.digest_of(bundle.pack({"a.yml": b"2"})))
    assert caught.value.code == "hook-bundle-changed"


def plan(**more: object) -> Plan:
    machine = {"name": "db", "hooks": {"pre_drill": "hooks/db.yml"}}
    machine["probes"] = [{"type": "ansible", "file": "checks/db.yml"}]  # type: ignore[assignment]
    return Plan.model_validate(
        {
            "name": "shop",
            "source_site": "a",
            "target_site": "b",
            "machines": [machine],
            "boot_groups": [{"name": "all", "machines": ["db"], "hooks": {"post_failback": {"file": "hooks/g.yml"}}}],
            "hooks": {"pre_failover": "gate", "post_failover": {"file": "hooks/dns.yml", "on_failure": "continue"}},
            **more,
        }
    )


def test_a_plan_says_where_it_names_files() -> None:
    assert list(bundle.referred(plan())) == [
        (("hooks", "post_failover"), "hooks/dns.yml"),
        (("boot_groups", 0, "hooks", "post_failback"), "hooks/g.yml"),
        (("machines", 0, "hooks", "pre_drill"), "hooks/db.yml"),
        (("machines", 0, "probes", 0, "file"), "checks/db.yml"),
    ]


@pytest.mark.parametrize(
    "hooks",
    [
        {"pre_lunch": "gate"},
        {"pre_drill": "../up.yml"},
        {"pre_drill": "hooks/a.sh"},
        {"pre_drill": {"hook": "gate", "file": "hooks/a.yml"}},
        {"pre_drill": {"timeout": "1m"}},
        {"pre_drill": {"file": "hooks/a.yml", "vars": {"farshore_x": 1}}},
        {"pre_drill": {"file": "hooks/a.yml", "secrets": ["../key"]}},
        {"pre_drill": {"file": "hooks/a.yml", "at": "source"}},
    ],
)
def test_a_hook_that_cannot_be_meant_is_refused(hooks: object) -> None:
    with pytest.raises(ValidationError):
        plan(hooks=hooks)
