"""Where the control plane is, and that a token goes nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from farshore.cli.settings import read_env_file, resolve
from farshore.errors import Invalid, NotFound


@pytest.fixture
def home(tmp_path: Path) -> Path:
    ca = tmp_path / "ca.pem"
    ca.write_text("certificate")
    (tmp_path / "farshore.env").write_text(
        f"# comment\nexport FARSHORE_URL=https://127.0.0.1:9443\nFARSHORE_TOKEN='fsh_a_b'\nFARSHORE_CA_PATH={ca}\n"
    )
    return tmp_path


def test_the_env_file_of_the_home_is_the_fallback(home: Path):
    endpoint = resolve(environ={"FARSHORE_HOME": str(home)})
    assert (endpoint.url, endpoint.token, endpoint.ca_path) == ("https://127.0.0.1:9443", "fsh_a_b", home / "ca.pem")
    assert endpoint.validate_certs


def test_options_win_over_the_environment_and_that_over_the_file(home: Path, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("fsh_c_d\n")
    environ = {"FARSHORE_HOME": str(home), "FARSHORE_URL": "https://env:1", "FARSHORE_TOKEN": "fsh_env"}
    assert resolve(environ=environ).url == "https://env:1"
    endpoint = resolve("https://option:2", token, environ=environ)
    assert (endpoint.url, endpoint.token) == ("https://option:2", "fsh_c_d")


def test_the_files_token_is_never_sent_to_another_address(home: Path):
    endpoint = resolve("https://elsewhere:8443", environ={"FARSHORE_HOME": str(home)})
    assert endpoint.token is None
    assert endpoint.ca_path is None


def test_the_same_address_by_option_may_have_the_files_token(home: Path):
    assert resolve("https://127.0.0.1:9443/", environ={"FARSHORE_HOME": str(home)}).token == "fsh_a_b"


def test_a_token_is_not_in_the_text_of_an_endpoint(home: Path):
    assert "fsh_a_b" not in repr(resolve(environ={"FARSHORE_HOME": str(home)}))


@pytest.mark.parametrize("url", ["http://127.0.0.1:8443", "127.0.0.1:8443", "https://host/path", "https://"])
def test_an_address_that_is_none_is_refused_by_name(url: str):
    with pytest.raises(Invalid) as caught:
        resolve(url, environ={})
    assert caught.value.field == "--url"


def test_a_missing_ca_or_token_file_is_named(tmp_path: Path):
    with pytest.raises(NotFound, match="CA file"):
        resolve(ca_path=tmp_path / "no.pem", environ={})
    with pytest.raises(NotFound, match="token file"):
        resolve(token_file=tmp_path / "no", environ={})
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(Invalid, match="is empty"):
        resolve(token_file=tmp_path / "empty", environ={})


def test_certificates_are_verified_unless_it_is_said(tmp_path: Path):
    for text, wanted in (("false", False), ("no", False), ("0", False), ("true", True), ("", True)):
        assert (
            resolve(environ={"FARSHORE_VALIDATE_CERTS": text, "FARSHORE_HOME": str(tmp_path)}).validate_certs is wanted
        )


def test_an_env_file_that_is_not_there_has_nothing(tmp_path: Path):
    assert read_env_file(tmp_path / "none") == {}
