"""Who may open a session, what an open one may ask, and peers that do not keep to the protocol."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles.datapath import Sites
from doubles.ports import free_port
from doubles.rogue_source import Answer, RogueSource
from farshore.blocks.digest import leaf_digest
from farshore.errors import (
    Conflict,
    Corruption,
    FarshoreError,
    Fenced,
    Forbidden,
    Invalid,
    NoSpace,
    Permanent,
    RestartFromCheckpoint,
    Retry,
    Unavailable,
)
from farshore.model.grant import GrantDisk
from farshore.model.plan import Transport
from farshore.model.task import Progress, ReplicateParams, ReplicateResult
from farshore.replication import admission, group
from farshore.replication.serve import SourceService
from farshore.testing.faults import FailingTarget, Plan
from farshore.testing.pki import TestAuthority
from farshore.transport import frames
from farshore.transport.buffers import Lent
from farshore.transport.links import Link, Links
from farshore.transport.packing import Packer
from farshore.transport.session import Session
from farshore.transport.tls import NodeTls, Peer, load
from farshore.units import KIB, LEAF_SIZE, MIB


class Site:
    """One source service in this process, and the way to it."""

    def __init__(self, folder: Path) -> None:
        self.sites = Sites(folder, {"db": {"vda": MIB}})
        self.sites.fill("db", "vda", 1, 5)
        self.service = SourceService(self.sites.alpha.source, self.sites.alpha_tls, self.sites.grant_key)
        _, self.sites.port = self.service.start("127.0.0.1:0")
        self.links: list[Links] = []
        self.used: list[Link] = []
        self.snapshot = self.sites.point()

    def link(self, identity: NodeTls | None = None, peer: Peer | None = None, give_up_s: float = 0.5) -> Link:
        links = Links(identity or self.sites.beta_tls, give_up_s=give_up_s)
        self.links.append(links)
        link = links.to(f"127.0.0.1:{self.sites.port}", peer or self.sites.alpha_tls.peer)
        link.use(2)
        self.used.append(link)
        return link

    def session(self, link: Link | None = None, **changes: Any) -> Session:
        term = changes.get("term", 1)
        epoch = changes.get("epoch", 1)
        params = self.sites.params(self.snapshot, **changes)
        session = Session(link or self.link(), params.grant, epoch, 4096)
        assert term
        return session

    def replicate(self, params: ReplicateParams, **changes: Any) -> ReplicateResult:
        links = Links(self.sites.beta_tls, give_up_s=0.5)
        self.links.append(links)
        return group.replicate(
            params,
            target=self.sites.beta.target,
            manifests=self.sites.beta.manifests,
            links=links,
            journal_dir=self.sites.journals,
            **changes,
        )

    def close(self) -> None:
        for links in self.links:
            links.close()
        self.service.stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    one = Site(tmp_path)
    yield one
    one.close()


def read(session: Session, *ranges: tuple[int, int], disk: int = 0) -> bytes:
    """Read a chunk as a cycle would; return its data without zeros."""
    done = threading.Event()
    found: list[bytes | FarshoreError] = []

    def on_data(_data: frames.Data, lent: Lent) -> None:
        found.append(bytes(lent.view))
        lent.release()
        done.set()

    def on_error(error: FarshoreError) -> None:
        found.append(error)
        done.set()

    session.read(disk, ranges, sum(length for _, length in ranges), on_data, on_error)
    assert done.wait(60)
    if isinstance(found[0], FarshoreError):
        raise found[0]
    return found[0]


def code(error: pytest.ExceptionInfo[FarshoreError]) -> str:
    return error.value.code


# --- certificates -----------------------------------------------------------------------------------------------------


def test_nodes_of_another_authority_are_refused_at_once(site: Site, tmp_path: Path) -> None:
    stranger = TestAuthority(tmp_path / "other", "other").load("beta", "beta-1")
    began = time.monotonic()
    with pytest.raises(Forbidden) as caught:
        site.session(site.link(stranger, give_up_s=60)).open()
    assert code(caught) == "certificate-refused"
    # It trusts us, but we do not trust it.
    files = TestAuthority(tmp_path / "third", "third").node("beta", "beta-1")
    half = load(files.cert, files.key, site.sites.alpha_files.ca)
    with pytest.raises(Forbidden) as caught:
        site.session(site.link(half, give_up_s=60)).open()
    assert code(caught) == "certificate-refused"
    assert time.monotonic() - began < 30, "it was not tried again and again"


def test_an_expired_certificate_is_refused(site: Site) -> None:
    files = site.sites.authority.node("beta", "old", days=-0.01)
    with pytest.raises(Forbidden) as caught:
        site.session(site.link(load(files.cert, files.key, files.ca), give_up_s=60)).open()
    assert code(caught) == "certificate-refused"


@pytest.mark.parametrize("field", ["site", "node", "thumbprint"])
def test_a_node_at_the_wrong_address_is_not_talked_to(site: Site, field: str) -> None:
    right = site.sites.alpha_tls.peer
    values = {"site": right.site, "node": right.node, "thumbprint": right.thumbprint, field: "other"}
    with pytest.raises(Forbidden) as caught:
        site.session(site.link(peer=Peer(**values), give_up_s=60)).open()
    assert code(caught) == "wrong-peer"


def test_a_certificate_without_a_node_is_refused(site: Site) -> None:
    files = site.sites.authority.node("beta", "odd", uri="spiffe://elsewhere/node/beta-1")
    with pytest.raises(Forbidden):
        load(files.cert, files.key, files.ca)


def greet(connection: ssl.SSLSocket) -> None:
    """Use a connection: with TLS 1.3 the verdict on a client's certificate comes after its handshake."""
    connection.sendall(frames.Hello().encode())
    connection.recv(1)


def test_older_tls_and_clients_without_certificate_are_refused(site: Site) -> None:
    for maximum, cert in ((ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, False)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(site.sites.beta_files.ca)
        context.maximum_version = maximum
        if cert:
            context.load_cert_chain(site.sites.beta_files.cert, site.sites.beta_files.key)
        plain = socket.create_connection(("127.0.0.1", site.sites.port))
        with plain, pytest.raises((ssl.SSLError, ConnectionError)):
            greet(context.wrap_socket(plain))


def test_plain_text_and_rubbish_do_not_disturb_others(site: Site) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", bytes(5000), b""):
        with socket.create_connection(("127.0.0.1", site.sites.port)) as plain:
            plain.sendall(data)
    session = site.session()
    session.open()
    assert len(read(session, (0, 512))) <= 512
    session.close()


# --- grants -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "expected"),
    [
        ({"source_node": "alpha-2"}, Forbidden, "grant-of-another-node"),
        ({"source_thumbprint": "00"}, Forbidden, "grant-of-another-node"),
        ({"target_node": "beta-2"}, Forbidden, "grant-of-another-node"),
        ({"target_site": "gamma"}, Forbidden, "grant-of-another-node"),
        ({"target_thumbprint": "00"}, Forbidden, "grant-of-another-node"),
        ({"not_after": 1.0}, Fenced, "grant-expired"),
        ({"generation": -1}, Fenced, "stale-generation"),
    ],
)
def test_a_grant_that_does_not_fit_opens_nothing(
    site: Site, changes: dict[str, Any], error: type[FarshoreError], expected: str
) -> None:
    with pytest.raises(error) as caught:
        site.session(grant=changes).open()
    assert code(caught) == expected
    assert site.service.sessions() == []


def test_a_grant_that_the_control_plane_did_not_sign_opens_nothing(site: Site) -> None:
    session = site.session()
    body, signature = session._question.grant.split(".")
    for text in ("", "nonsense", f"{body}.", f"{body}.{signature[:-4]}AAAA", f"{body[:-8]}AAAAAAAA.{signature}"):
        forged = Session(site.used[0], text, 1, 4096)
        with pytest.raises(Forbidden) as caught:
            forged.open()
        assert code(caught) == "grant-invalid"
    site.service.grant_key = None
    with pytest.raises(Forbidden) as caught:
        session.open()
    assert code(caught) == "grant-key-missing"


def test_a_grant_of_a_newer_control_plane_replaces_the_older_one(site: Site) -> None:
    seen: list[int] = []
    site.service.on_generation = seen.append
    site.session(grant={"generation": 5}).open()
    assert (site.service.generation, seen) == (5, [5])
    with pytest.raises(Fenced) as caught:
        site.session(grant={"generation": 4, "session_id": "se-other"}).open()
    assert code(caught) == "stale-generation"


@pytest.mark.parametrize("counter", ["term", "epoch"])
def test_a_higher_term_or_epoch_fences_the_lower(site: Site, counter: str) -> None:
    older = site.session(**{counter: 1})
    older.open()
    read(older, (0, 512))
    newer = site.session(**{counter: 2})
    newer.open()
    read(newer, (0, 512))
    with pytest.raises(Fenced) as caught:
        read(older, (0, 512))
    assert code(caught) == "stale-term"
    with pytest.raises(Fenced):
        site.session(**{counter: 1}).open()
    assert [getattr(info, counter) for info in site.service.sessions()] == [2]
    newer.close()
    with pytest.raises(Fenced) as caught:
        site.session(**{counter: 1}).open()  # also once nothing is open any more
    assert code(caught) == "stale-term"


def test_all_connections_of_a_peer_are_one_path(site: Site) -> None:
    session = site.session()
    session.open()
    read(session, (0, 512))
    link = site.used[-1]
    assert site.service.paths.to(("beta", "beta-1")).connections == link.stats().connections >= 1


def test_a_point_that_is_gone_opens_nothing(site: Site) -> None:
    session = site.session()
    site.sites.release(site.snapshot, applied=False)
    with pytest.raises(RestartFromCheckpoint) as caught:
        session.open()
    assert code(caught) == "source-point-gone"


def test_a_grant_over_another_size_or_disk_opens_nothing(site: Site) -> None:
    for update, error in (({"size_bytes": 512}, Conflict), ({"disk_key": "db/vdz"}, Forbidden)):
        params = site.sites.params(site.snapshot)
        granted = admission.read_grant(params.grant, None).disks[0].model_copy(update=update)
        with pytest.raises(error):
            site.session(grant={"disks": (granted,)}).open()


def test_a_grant_to_inspect_lists_the_disks_of_a_point_and_reads_nothing(site: Site) -> None:
    inspect = {"mode": "inspect", "disks": (GrantDisk(disk_key="*", size_bytes=0, source_point="pt-1"),)}
    session = site.session(grant=inspect)
    opened = session.open()
    assert [(disk.disk_key, disk.size_bytes, disk.incremental) for disk in opened.disks] == [("db/vda", MIB, False)]
    assert opened.disks[0].reason
    assert site.service.sessions() == []
    with pytest.raises(RestartFromCheckpoint) as caught:
        read(session, (0, 512))
    assert code(caught) == "session-unknown"
    session.close()


def test_a_grant_to_inspect_fences_nobody(site: Site) -> None:
    working = site.session(term=2)
    working.open()
    inspect = {"mode": "inspect", "disks": (GrantDisk(disk_key="*", size_bytes=0, source_point="pt-1"),)}
    site.session(epoch=9, term=9, grant=inspect).open()
    read(working, (0, 512))


@pytest.mark.parametrize(
    ("mode", "key", "error"),
    [("replicate", "*", "disk-not-in-point"), ("inspect", "db/vda", "grant-invalid")],
)
def test_only_a_grant_to_inspect_names_all_disks(site: Site, mode: str, key: str, error: str) -> None:
    disks = (GrantDisk(disk_key=key, size_bytes=0, source_point="pt-1"),)
    with pytest.raises(Forbidden) as caught:
        site.session(grant={"mode": mode, "disks": disks}).open()
    assert code(caught) == error


# --- what an open session may ask -------------------------------------------------------------------------------------


def test_questions_outside_of_the_grant_are_refused(site: Site) -> None:
    session = site.session()
    session.open()
    for ranges, disk, error in (
        (((MIB - 512, 1024),), 0, Invalid),
        (((0, 512),), 1, Forbidden),
    ):
        with pytest.raises(error):
            read(session, *ranges, disk=disk)
    with pytest.raises(Forbidden) as caught:
        list(session.extents(0, since_base=True))
    assert code(caught) == "base-not-granted"
    with pytest.raises(Invalid):
        session.digests(0, 0, 17).result(30)
    with pytest.raises(Invalid):
        session._list(0, since_base=False, offset=MIB + 1).result(30)
    assert len(session.digests(0, 0, 16).result(30)) == 16 * 32


def test_a_session_of_another_node_is_out_of_reach(site: Site) -> None:
    session = site.session()
    session.open()
    other = site.sites.authority.load("beta", "beta-2")
    thief = Session(site.link(other), session._question.grant, 1, 4096)
    thief.number, thief.disks = session.number, session.disks
    with pytest.raises(Forbidden) as caught:
        read(thief, (0, 512))
    assert code(caught) == "session-of-another"


def test_a_session_that_the_source_forgot_is_opened_again_unseen(site: Site) -> None:
    session = site.session()
    session.open()
    before = read(session, (0, 64 * KIB))
    site.service.end(session.number, site.sites.beta_tls.peer)
    assert read(session, (0, 64 * KIB)) == before
    assert len(site.service.sessions()) == 1
    session.close()
    assert session.source_stats(), "the source confirms the end"
    assert site.service.sessions() == []


def test_a_forgotten_session_whose_grant_has_expired_asks_for_a_fresh_one(site: Site) -> None:
    session = site.session(grant={"not_before": time.time() - 500, "not_after": time.time() - 119})
    session.open()
    site.service.end(session.number, site.sites.beta_tls.peer)
    deadline = time.monotonic() + 60
    error: FarshoreError | None = None
    while error is None and time.monotonic() < deadline:
        try:
            read(session, (0, 512))
            site.service.end(session.number, site.sites.beta_tls.peer)
        except FarshoreError as caught:
            error = caught
    assert isinstance(error, RestartFromCheckpoint)
    assert error.code == "session-gone"


# --- the whole call ---------------------------------------------------------------------------------------------------


def test_an_expired_grant_is_told_as_such(site: Site) -> None:
    with pytest.raises(RestartFromCheckpoint) as caught:
        site.replicate(site.sites.params(site.snapshot, valid_s=-500), grant_key=site.sites.grant_key)
    assert code(caught) == "grant-expired"


def test_a_source_that_is_not_there_is_given_up(site: Site) -> None:
    port = free_port()
    with pytest.raises(Unavailable) as caught:
        site.replicate(site.sites.params(site.snapshot, address=f"127.0.0.1:{port}"))
    assert code(caught) == "peer-unreachable"
    assert str(port) in str(caught.value)


def test_cancelling_keeps_what_is_durable(site: Site) -> None:
    site.service.stop()
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Retry) as caught:
        site.replicate(site.sites.params(site.snapshot), cancel=cancel)
    assert code(caught) == "cancelled"


def test_cancelled_in_the_middle_it_goes_on_later(tmp_path: Path) -> None:
    transport = Transport(per_disk_window=2 * MIB, intermediate_checkpoint_window=2 * MIB)
    sites = Sites(tmp_path, {"db": {"vda": 12 * MIB}}, transport)
    sites.machine("db").write("vda", 0, b"x" * (12 * MIB))
    service = SourceService(sites.alpha.source, sites.alpha_tls, sites.grant_key)
    _, sites.port = service.start("127.0.0.1:0")
    links, cancel, seen = Links(sites.beta_tls, give_up_s=5), threading.Event(), list[Progress]()

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        if progress.done_bytes >= 6 * MIB:  # window and mark distance together are 4 MiB, so 2 MiB are durable
            cancel.set()

    def replicate(target: Any, **changes: Any) -> ReplicateResult:
        return group.replicate(
            params, target=target, manifests=sites.beta.manifests, links=links, journal_dir=sites.journals, **changes
        )

    try:
        params = sites.params(sites.point())
        slow = FailingTarget(sites.beta.target, Plan("write#3+:delay=0.8"))
        with pytest.raises(Retry) as caught:
            replicate(slow, on_progress=on_progress, cancel=cancel)
        assert code(caught) == "cancelled"
        assert [point.partition(":")[0] for point in sites.beta.target.points()] == ["draft"]
        deadline = time.monotonic() + 60
        while service.sessions() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert service.sessions() == []
        before = service.sent_bytes
        result = replicate(sites.beta.target, on_progress=seen.append)
        assert sites.published(result.manifest) == {"db/vda": b"x" * (12 * MIB)}
        assert service.sent_bytes - before <= 10 * MIB
        assert seen[-1].done_bytes == seen[-1].total_bytes == 12 * MIB
    finally:
        links.close()
        service.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount a small file system")
def test_a_journal_without_space_leaves_nothing(site: Site, tmp_path: Path) -> None:
    journals = tmp_path / "small"
    journals.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "farshore-test", str(journals)], check=True)
    try:
        (journals / "filler").write_bytes(bytes(60 * KIB))
        site.sites.journals = journals
        with pytest.raises(NoSpace) as caught:
            site.replicate(site.sites.params(site.snapshot))
        assert code(caught) == "journal-full"
        assert site.sites.beta.target.points() == []
        assert [path.name for path in journals.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", str(journals)], check=True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"disks": ()}, "disks"),
        ({"address": "nowhere"}, "address"),
        ({"grant": "nonsense"}, None),
    ],
)
def test_parameters_that_make_no_sense_are_refused(site: Site, change: dict[str, Any], field: str | None) -> None:
    params = site.sites.params(site.snapshot).model_copy(update=change)
    with pytest.raises(Permanent) as caught:
        site.replicate(params)
    assert caught.value.field == field
    assert site.sites.beta.target.points() == []


def test_a_listener_that_cannot_be_had_names_the_setting(site: Site) -> None:
    for listen in (f"127.0.0.1:{site.sites.port}", "here", "127.0.0.1:x", "127.0.0.1:70000"):
        service = SourceService(site.sites.alpha.source, site.sites.alpha_tls, None)
        with pytest.raises((Conflict, Invalid)) as caught:
            service.start(listen)
        assert caught.value.field == "data_listen"


# --- peers that break the protocol ------------------------------------------------------------------------------------


def whole(number: int, question: frames.Read, **changes: Any) -> tuple[bytes, bytes]:
    """Answer READ honestly, but for ``changes``."""
    pieces = [(offset, length, False) for offset, length in question.ranges]
    values: dict[str, Any] = {"session": 1, "disk": 0, "epoch": 1, "pieces": pieces, "leaf_digests": b"\1" * 32 * 16}
    values |= changes
    payload = b"x" * sum(length for _, length, _ in values["pieces"])
    head = frames.Data.encode(
        number,
        values["session"],
        values["disk"],
        values["epoch"],
        values["pieces"],
        values["leaf_digests"],
        memoryview(payload),
    )
    return head, changes.get("send", payload)


@pytest.mark.parametrize(
    ("answer", "expected", "reads"),
    [
        (lambda number, read: whole(number, read, send=b"y" * MIB), "wire-digest", 3),
        (lambda number, read: whole(number, read, epoch=2), "wire-digest", 3),
        (lambda number, read: whole(number, read, session=2), "misplaced-data", 3),
        (lambda number, read: whole(number, read, disk=1), "misplaced-data", 3),
        (lambda number, read: whole(number, read, pieces=[(4096, MIB - 4096, False)]), "misplaced-data", 3),
        (lambda number, read: whole(number, read, pieces=[(0, 4096, False)]), "misplaced-data", 3),
        (lambda number, read: whole(number, read, leaf_digests=b"\1" * 32), "leaf-digests", 1),
        (lambda number, read: whole(number, read, leaf_digests=b"\1" * 32 * 17), "leaf-digests", 1),
    ],
)
def test_wrong_data_is_never_published(site: Site, answer: Answer, expected: str, reads: int) -> None:
    rogue = RogueSource(site.sites.alpha_tls, answer)
    try:
        params = site.sites.params(site.snapshot, address=f"127.0.0.1:{rogue.port}")
        with pytest.raises(Corruption) as caught:
            site.replicate(params)
        assert code(caught) == expected
        assert rogue.reads == reads
        assert site.sites.beta.target.points() == []
        assert site.sites.beta.manifests.list("groups/") == []
    finally:
        rogue.close()


def packed(number: int, frame: bytes) -> tuple[bytes, bytes]:
    """Answer READ with what claims to be the zstd of 1 MiB of x."""
    payload = memoryview(b"x" * MIB)
    head = frames.Data.encode(number, 1, 0, 1, [(0, MIB, False)], b"\1" * 512, payload, len(frame))
    return head, frame


HONEST = Packer().pack(memoryview(b"x" * MIB))


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (HONEST[:-1], "packed-data"),
        (HONEST[:9] + b"\xff" + HONEST[10:], "packed-data"),
        (Packer().pack(memoryview(b"x" * 64 * MIB)), "packed-data"),
        (Packer().pack(memoryview(b"y" * MIB)), "wire-digest"),
    ],
    ids=["cut", "damaged", "bomb", "other"],
)
def test_compressed_data_that_is_wrong_is_never_published(site: Site, frame: bytes, expected: str) -> None:
    rogue = RogueSource(site.sites.alpha_tls, lambda number, _question: packed(number, frame))
    try:
        with pytest.raises(Corruption) as caught:
            site.replicate(site.sites.params(site.snapshot, address=f"127.0.0.1:{rogue.port}"))
        assert code(caught) == expected
        assert rogue.reads == 3
        assert site.sites.beta.target.points() == []
    finally:
        rogue.close()


def test_a_compressed_chunk_that_breaks_once_is_asked_for_again(site: Site) -> None:
    leaves = leaf_digest(b"x" * LEAF_SIZE) * (MIB // LEAF_SIZE)

    def answer(number: int, _question: frames.Read) -> tuple[bytes, bytes]:
        head, frame = packed(number, HONEST if rogue.reads > 1 else HONEST[:-3])
        if rogue.reads > 1:
            payload = memoryview(b"x" * MIB)
            head = frames.Data.encode(number, 1, 0, 1, [(0, MIB, False)], leaves, payload, len(frame))
        return head, frame

    rogue = RogueSource(site.sites.alpha_tls, answer)
    try:
        result = site.replicate(site.sites.params(site.snapshot, address=f"127.0.0.1:{rogue.port}"))
        assert rogue.reads == 2
        assert site.sites.published(result.manifest) == {"db/vda": b"x" * MIB}
    finally:
        rogue.close()


def test_a_source_compresses_only_what_it_was_asked_to(site: Site) -> None:
    """Refused as a breach of the protocol: the connection goes, and in the end the source is given up."""
    rogue = RogueSource(site.sites.alpha_tls, lambda number, _question: packed(number, HONEST))
    site.sites.transport = site.sites.transport.model_copy(update={"compression": "off"})
    try:
        with pytest.raises(FarshoreError) as caught:
            site.replicate(site.sites.params(site.snapshot, address=f"127.0.0.1:{rogue.port}"))
        assert code(caught) in {"protocol-error", "peer-silent"}
        assert site.sites.beta.target.points() == [] or caught.value.exit_status == 75
    finally:
        rogue.close()


@pytest.mark.parametrize("compression", ["auto", "off"])
def test_what_shrinks_crosses_compressed_if_it_is_allowed_to(tmp_path: Path, compression: str) -> None:
    sites = Sites(tmp_path, {"db": {"vda": MIB}}, Transport(compression=compression, connections=1))
    content = b"the same again, " * (MIB // 16)
    sites.machine("db").write("vda", 0, content)
    service = SourceService(sites.alpha.source, sites.alpha_tls, sites.grant_key)
    _, sites.port = service.start("127.0.0.1:0")
    links = Links(sites.beta_tls, give_up_s=5)
    try:
        params = sites.params(sites.point())
        result = group.replicate(
            params,
            target=sites.beta.target,
            manifests=sites.beta.manifests,
            links=links,
            journal_dir=sites.journals,
        )
        assert sites.published(result.manifest) == {"db/vda": content}
        assert service.sent_bytes == MIB
        received = links.to(params.address, sites.alpha_tls.peer).stats().wire_received
        assert received < 64 * KIB if compression == "auto" else received > MIB
    finally:
        links.close()
        service.stop()


def test_one_damaged_chunk_is_asked_for_again(site: Site) -> None:
    def answer(number: int, question: frames.Read) -> tuple[bytes, bytes]:
        return whole(number, question, send=(b"y" if rogue.reads == 1 else b"x") * MIB)

    rogue = RogueSource(site.sites.alpha_tls, answer)
    try:
        result = site.replicate(site.sites.params(site.snapshot, address=f"127.0.0.1:{rogue.port}"))
        assert site.sites.published(result.manifest) == {"db/vda": b"x" * MIB}
        assert rogue.reads == 2
    finally:
        rogue.close()


@pytest.mark.parametrize(
    "answer",
    [
        lambda _number, _read: (b"nonsense that is longer than a header of a frame", b""),
        lambda number, read: (whole(number + 7, read)[0], b"x" * MIB),
        lambda number, read: (whole(number, read)[0], b"x" * 100 + frames.Hello().encode() * 30_000),
    ],
)
def test_a_stream_that_makes_no_sense_is_left(site: Site, answer: Answer) -> None:
    tries = 0

    def once(number: int, question: frames.Read) -> tuple[bytes, bytes]:
        nonlocal tries
        tries += 1
        return answer(number, question) if tries == 1 else whole(number, question)

    rogue = RogueSource(site.sites.alpha_tls, once)
    try:
        result = site.replicate(site.sites.params(site.snapshot, address=f"127.0.0.1:{rogue.port}"))
        assert site.sites.published(result.manifest) == {"db/vda": b"x" * MIB}
    finally:
        rogue.close()


def test_a_node_of_another_protocol_is_named(site: Site) -> None:
    rogue = RogueSource(site.sites.alpha_tls, whole, hello=frames.Hello(7, 9).encode())
    try:
        with pytest.raises(Permanent) as caught:
            site.replicate(site.sites.params(site.snapshot, address=f"127.0.0.1:{rogue.port}"))
        assert code(caught) == "protocol-version"
    finally:
        rogue.close()
