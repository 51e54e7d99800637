"""Records: migrations equal the models, transactions, the trail, tokens, certificates, the home."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from farshore.control import audit, home, ids
from farshore.control.auth import ca, tokens
from farshore.control.store import Store
from farshore.control.store.database import Effects
from farshore.control.store.records import Audit, Base, Node, Run, RunStep, Setting, Site
from farshore.errors import Invalid, NotFound, Unauthenticated
from sqlalchemy import event, select
from sqlalchemy.exc import IntegrityError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "records.db")
    opened.migrate()
    return opened


def test_the_migrations_make_what_the_models_say(store: Store) -> None:
    with store.read() as session:
        context = MigrationContext.configure(session.connection(), opts={"render_as_batch": True})
        assert compare_metadata(context, Base.metadata) == []
    store.migrate()  # again: nothing


def test_a_table_that_is_changed_keeps_the_rows_that_refer_to_it(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    old = Store(path)
    old.migrate("0016")
    old.close()
    with closing(sqlite3.connect(path)) as records, records:
        records.execute(
            "INSERT INTO run (run_id, kind, plan, plan_revision, state, actor, params, created_at, cancel, workflow,"
            " pokes, told, pause, phase, from_site, to_site, facts) VALUES"
            " ('run-1', 'drill', 'p', 1, 'succeeded', 'a', '{}', 1.0, 0, 1, 7, 3, 0, 'end', 'x', 'y', '{\"a\": 1}')"
        )
        records.execute(
            "INSERT INTO run_step (run_id, position, name, machine, state, attempt, detail) VALUES"
            " ('run-1', 1, 'create', 'vm', 'succeeded', 1, '')"
        )
    store = Store(path)
    store.migrate()
    with store.read() as session:
        run = session.scalars(select(Run)).one()
        assert (run.run_id, run.pokes, run.phase, run.facts) == ("run-1", 7, "end", {"a": 1})
        assert [step.name for step in session.scalars(select(RunStep))] == ["create"]
    with pytest.raises(IntegrityError), store.write() as tx:  # enforced again
        tx.add(Node(name="n", site="nowhere", roles=[], data_address="", created_at=0.0, generation=0))


def test_a_migration_that_leaves_rows_without_what_they_refer_to_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    old = Store(path)
    old.migrate("0016")
    old.close()
    with closing(sqlite3.connect(path)) as records, records:
        records.execute("INSERT INTO site_link VALUES ('no', 'where', 'source', '{}', 1.0)")
    store = Store(path)
    with pytest.raises(sqlite3.IntegrityError, match="refer to nothing"):
        store.migrate()
    with closing(sqlite3.connect(path)) as records:
        assert records.execute("SELECT version_num FROM alembic_version").fetchall() == [("0016",)]


def test_references_are_enforced_and_an_error_takes_everything_back(store: Store) -> None:
    nowhere = Node(name="n", site="nowhere", roles=[], data_address="", created_at=0.0, generation=0)
    with pytest.raises(IntegrityError), store.write() as tx:
        tx.add_all([Setting(key="kept", value={}), nowhere])
    with store.read() as session:
        assert session.get(Setting, "kept") is None


def test_effects_follow_the_commit_and_no_rollback(tmp_path: Path) -> None:
    told: list[Effects] = []
    store = Store(tmp_path / "records.db", told.append)
    store.migrate()
    with store.write() as tx:
        tx.changed("site", "alpha")
        tx.wake("alpha")
        assert told == []
    assert (list(told[0].changes), told[0].sites) == ([("site", "alpha")], {"alpha"})

    def fail() -> None:
        with store.write() as tx:
            tx.changed("site", "beta")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(told) == 1


def test_a_nested_write_says_so_instead_of_waiting_for_itself(store: Store) -> None:
    with pytest.raises(RuntimeError, match="already"), store.write(), store.write():
        pass


def test_writers_of_many_threads_follow_each_other(store: Store) -> None:
    def add(number: int) -> None:
        for turn in range(5):
            with store.write() as tx:
                audit.record(tx, "t", "count", f"{number}.{turn}")

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.read() as session:
        assert len(session.scalars(select(Audit)).all()) == 20
        assert audit.first_break(session) is None


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_the_trail_shows_what_was_changed_or_removed(store: Store, damage: str) -> None:
    with store.write() as tx:
        for number in range(5):
            audit.record(tx, "who", "did", "what", number=number)
    with store.write() as tx:
        entry = tx.get_one(Audit, 3)
        if damage == "change":
            entry.detail = {"number": 7}
        else:
            tx.delete(entry)
    with store.read() as session:
        assert audit.first_break(session) == 3


def test_ids_sort_by_time_and_are_safe_as_names() -> None:
    first = ids.new("run")
    time.sleep(0.002)
    second = ids.new("run")
    assert first < second
    assert len({ids.new("x") for _ in range(1000)}) == 1000
    assert first.replace("run-", "").isalnum()


def test_tokens_are_split_and_compared() -> None:
    issued = tokens.issue(tokens.API)
    parts = tokens.split(tokens.API, issued.text)
    assert parts is not None
    assert parts[0] == issued.token_id
    assert tokens.matches(parts[1], issued.digest)
    assert not tokens.matches(parts[1] + "0", issued.digest)
    for wrong in ("", "fsh", "fsh_", "fsh_a_", "fsh__b", "fsn_a_b", "fsh_../x_y"):
        assert tokens.split(tokens.API, wrong) is None
    assert tokens.covers("admin", "viewer")
    assert not tokens.covers("viewer", "operator")
    assert not tokens.covers("root", "viewer")


def _csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ca.node_uri("other", "other-1"))]), critical=False
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_a_certificate_holds_what_the_authority_says_whatever_the_request_asks() -> None:
    authority = ca.Authority.create("cat-1")
    issued = authority.sign_node(_csr(ca.new_key()), "alpha", "alpha-1")
    certificate = x509.load_pem_x509_certificate(issued.pem.encode())
    peer = ca.read_peer(certificate.public_bytes(serialization.Encoding.DER))
    assert (peer.site, peer.node, peer.thumbprint) == ("alpha", "alpha-1", issued.thumbprint)
    assert certificate.not_valid_after_utc - datetime.now(UTC) < timedelta(days=31)
    certificate.verify_directly_issued_by(authority.certificate)
    again = ca.Authority.load(authority.pem.encode(), authority.key_pem())
    assert again.fingerprint == authority.fingerprint


def test_weak_or_broken_requests_are_refused() -> None:
    authority = ca.Authority.create("cat-1")
    for text in ("", "x", _csr(rsa.generate_private_key(65537, 2048)), _csr(ec.generate_private_key(ec.SECP384R1()))):
        with pytest.raises(Invalid):
            authority.sign_node(text, "alpha", "alpha-1")
    server = authority.sign_server(ca.new_key(), ["localhost", "127.0.0.1"])
    der = x509.load_pem_x509_certificate(server.pem.encode()).public_bytes(serialization.Encoding.DER)
    with pytest.raises(Unauthenticated):
        ca.read_peer(der)


def test_a_home_is_made_once_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "home"
    with pytest.raises(NotFound):
        home.load(path)
    first = home.initialise(path, port=18443)
    token = first.environment()["FARSHORE_TOKEN"]
    keys = {item.name: item.read_bytes() for item in first.secrets.iterdir()}
    second = home.initialise(path)
    assert (second.port, second.environment()["FARSHORE_TOKEN"]) == (18443, token)
    assert {item.name: item.read_bytes() for item in first.secrets.iterdir()} == keys
    assert home.load(path) == second
    first.ca.unlink()
    first.env.unlink()
    third = home.initialise(path, names=["dr.example"])
    assert third.ca.read_bytes() == keys["ca.pem"]
    assert third.environment()["FARSHORE_TOKEN"] != token
    assert (third.secrets / "server.pem").read_bytes() != keys["server.pem"]
    assert (third.secrets / "ca.key").read_bytes() == keys["ca.key"]
    assert third.running_pid() is None
    (path / "config.yml").write_text("port: many\n")
    with pytest.raises(Invalid, match="port"):
        home.load(path)


def test_an_old_admin_token_is_void_when_a_new_one_is_made(tmp_path: Path) -> None:
    from farshore.control.store.records import Token

    path = tmp_path / "home"
    made = home.initialise(path)
    made.env.unlink()
    home.initialise(path)
    store = Store(made.database)
    with store.read() as session:
        rows = session.scalars(select(Token)).all()
        assert sorted(row.revoked_at is None for row in rows) == [False, True]
        assert session.scalars(select(Site)).all() == []


def test_a_view_reads_a_row_once_though_nobody_holds_it(store: Store) -> None:
    with store.write() as tx:
        tx.add(Setting(key="colour", value={"value": "red"}))
    asked: list[str] = []
    with store.read() as session:
        event.listen(session.connection(), "before_cursor_execute", lambda *told: asked.append(told[2]))
        for _ in range(3):
            assert session.get_one(Setting, "colour").value == {"value": "red"}
    assert len(asked) == 1
