"""The client: who may be asked, what is retried, and how each refusal is told."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl

import pytest
from ansible_collections.farshore.dr.plugins.module_utils import client as under_test
from ansible_collections.farshore.dr.plugins.module_utils import errors
from double import TOKEN, Double, Problem


@pytest.fixture
def client(double):
    return under_test.Client(double.url, TOKEN, sleep=lambda seconds: None)


@pytest.mark.parametrize(
    ("params", "field", "says"),
    [
        ({"url": None}, "url", "FARSHORE_URL"),
        ({"url": "ftp://there"}, "url", "https://HOST:8443"),
        ({"url": "http://there:8443"}, "url", "not encrypted"),
        ({"url": "https://me:secret@there"}, "url", "password"),
        ({"ca_path": __file__}, "ca_path", "holds no certificate"),
        ({"token": None}, "token", "FARSHORE_TOKEN"),
        ({"ca_path": "/nowhere/ca.pem"}, "ca_path", "/nowhere/ca.pem"),
    ],
)
def test_parameters_that_cannot_work(params, field, says):
    with pytest.raises(errors.BadParameter) as caught:
        under_test.Client(**{"url": "https://127.0.0.1:1", "token": TOKEN, **params})
    assert caught.value.field == field
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.Invalid),
        (401, errors.Unauthenticated),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (422, errors.Invalid),
        (500, errors.BadAnswer),
    ],
)
def test_a_problem_becomes_the_error_of_its_status(double, client, status, kind):
    double.faults.append(Problem(status, "some-code", "the reason", field="a.b", hint="Do this.", evidence={"n": 1}))
    with pytest.raises(kind) as caught:
        client.get("/sites")
    error = caught.value
    assert (error.code, error.field, error.hint, error.evidence, error.status) == (
        "some-code",
        "a.b",
        "Do this.",
        {"n": 1},
        status,
    )
    assert str(error) == "a.b: the reason [some-code] Do this."
    assert len(double.log) == 1


def test_reading_is_tried_again(double, client):
    double.faults += ["drop", Problem(503, "try-again", "busy"), Problem(502, "x", "y")]
    assert client.items("/sites") == []
    assert len(double.log) == 4


def test_patience_ends(double, client):
    double.faults += [Problem(503, "try-again", "busy") for unused in range(under_test.TRIES)]
    with pytest.raises(errors.Unavailable, match="busy"):
        client.get("/sites")
    assert len(double.log) == under_test.TRIES


def test_retry_after_is_obeyed_within_reason(double):
    slept = []
    client = under_test.Client(double.url, TOKEN, sleep=slept.append)
    double.faults += [
        Problem(429, "slow", "down", headers={"Retry-After": "3"}),
        Problem(429, "slow", "down", headers={"Retry-After": "86400"}),
        Problem(429, "slow", "down", headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}),
    ]
    client.get("/sites")
    assert slept[:2] == [3.0, under_test.LONGEST_PAUSE_S]
    assert 0 < slept[2] < 1


def test_a_mutation_is_repeated_under_one_key(double, client):
    double.faults.append("drop")
    client.write("PUT", "/sites/alpha", {"platform": "kvm"})
    keys = {headers["Idempotency-Key"] for method, path, body, headers in double.log}
    assert len(double.log) == 2
    assert len(keys) == 1
    client.write("PUT", "/sites/beta", {"platform": "kvm"})
    assert double.log[-1][3]["Idempotency-Key"] not in keys


def test_check_mode_needs_a_preview_or_a_guess(double):
    client = under_test.Client(double.url, TOKEN, check_mode=True)
    with pytest.raises(ValueError, match="neither a preview nor a guess"):
        client.write("DELETE", "/sites/alpha")
    with pytest.raises(ValueError, match="not a preview"):
        client.preview("/sites/alpha")
    assert double.log == []


def test_nobody_there():
    client = under_test.Client("http://127.0.0.1:9", TOKEN, sleep=lambda seconds: None)
    with pytest.raises(errors.Unavailable) as caught:
        client.get("/health")
    assert caught.value.field == "url"
    assert "http://127.0.0.1:9" in str(caught.value)
    assert "farshore status" in str(caught.value)


def test_a_wrong_token(double):
    client = under_test.Client(double.url, "fsh_2_wrong", sleep=lambda seconds: None)
    with pytest.raises(errors.Unauthenticated) as caught:
        client.get("/sites")
    assert "FARSHORE_TOKEN" in caught.value.hint
    assert "fsh_2_wrong" not in str(caught.value.to_result())


def test_something_else_answers(double, client):
    double.faults.append(b"<html>hello</html>")
    with pytest.raises(errors.BadAnswer, match="did not answer with JSON"):
        client.get("/sites")
    double.faults.append(b"[]")
    with pytest.raises(errors.BadAnswer, match="did not answer with a list"):
        client.items("/sites")


def test_the_token_follows_no_redirect(double, client):
    with Double() as elsewhere:
        double.faults.append(elsewhere.url)
        with pytest.raises(errors.BadAnswer, match="redirects"):
            client.get("/sites")
        assert elsewhere.log == []


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority and a server certificate of it: (path of the CA, context of the server)."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    now = dt.datetime.now(dt.timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "double")])
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for unused in range(2))

    def certificate(public, subject, ca):
        builder = (
            x509.CertificateBuilder(name, subject, public, x509.random_serial_number(), now, now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
        )
        if ca:
            usage = dict.fromkeys(
                [
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "encipher_only",
                    "decipher_only",
                ],
                False,
            )
            builder = builder.add_extension(
                x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage), critical=True
            )
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca_path, cert_path, key_path = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    ca_path.write_bytes(certificate(ca_key.public_key(), name, ca=True))
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    cert_path.write_bytes(certificate(key.public_key(), subject, ca=False))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert_path, key_path)
    return ca_path, context


def test_the_certificate_is_checked(authority):
    ca_path, context = authority
    with Double(tls=context) as double:
        assert under_test.Client(double.url, TOKEN, ca_path=str(ca_path)).get("/sites") == {"items": []}
        assert under_test.Client(double.url, TOKEN, validate_certs=False).get("/sites") == {"items": []}
        with pytest.raises(errors.BadParameter) as caught:
            under_test.Client(double.url, TOKEN).get("/sites")
    assert caught.value.code == "certificate-untrusted"
    assert caught.value.field == "ca_path"
    assert "FARSHORE_CA_PATH" in caught.value.hint


def test_the_environment_says_where(run_module, double, monkeypatch):
    monkeypatch.setenv("FARSHORE_URL", double.url)
    monkeypatch.setenv("FARSHORE_TOKEN", TOKEN)
    assert run_module("site_info", connected=False)["sites"] == []


def test_without_address_the_module_says_what_to_set(run_module):
    result = run_module("site_info", connected=False)
    assert result["failed"]
    assert "FARSHORE_URL" in result["msg"]
