from pathlib import Path

import pytest
from farshore.errors import Invalid, NotFound
from farshore.node import config

GOOD = """\
name: alpha-1
site: alpha
control_url: https://127.0.0.1:8444/
state_dir: {state}
data_listen: 127.0.0.1:9101
platform: {{type: file, root: /srv/alpha}}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "node.yml"
    path.write_text(text.format(state=tmp_path / "state"))
    return path


def test_defaults_and_derived_paths(tmp_path: Path):
    settings = config.load(write(tmp_path, GOOD))
    assert settings.control_url == "https://127.0.0.1:8444"
    assert settings.roles == ("replication", "recovery")
    assert settings.data_listen == "127.0.0.1:9101"
    assert settings.log_path == tmp_path / "state" / "node.log"
    assert settings.limits.replicate == 4


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("name: alpha-1", "name: ../etc"), "name"),
        (("name: alpha-1\n", ""), "name"),
        (("https://127.0.0.1:8444/", "http://127.0.0.1:8444"), "control_url"),
        (("{state}", "state"), "state_dir"),
        (("127.0.0.1:9101", "127.0.0.1"), "data_listen"),
        (("127.0.0.1:9101", "127.0.0.1:99999"), "data_listen"),
        (("type: file, ", ""), "platform"),
        (("site: alpha", "site: alpha\nsitte: beta"), "sitte"),
        (("site: alpha", "site: alpha\nlimits: {{replicate: 0}}"), "limits.replicate"),
        (("site: alpha", "site: alpha\npoll_wait: 2m"), "poll_wait"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, change: tuple[str, str], field: str):
    with pytest.raises(Invalid) as caught:
        config.load(write(tmp_path, GOOD.replace(*change)))
    assert caught.value.field == field
    assert "node.yml" in caught.value.message


def test_what_is_no_yaml_is_told_with_its_place(tmp_path: Path):
    path = tmp_path / "node.yml"
    path.write_text("name: alpha\nsite: [")
    with pytest.raises(Invalid, match="line 2"):
        config.load(path)


def test_a_list_is_no_configuration(tmp_path: Path):
    path = tmp_path / "node.yml"
    path.write_text("- name: alpha\n")
    with pytest.raises(Invalid, match="mapping"):
        config.load(path)


def test_a_missing_file_is_told(tmp_path: Path):
    with pytest.raises(NotFound, match="--config"):
        config.load(tmp_path / "none.yml")


def test_no_python_object_is_made_from_yaml(tmp_path: Path):
    path = tmp_path / "node.yml"
    path.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(Invalid):
        config.load(path)


@pytest.mark.parametrize(("text", "host", "port"), [("[::1]:9101", "::1", 9101), ("node.example:0", "node.example", 0)])
def test_addresses(text: str, host: str, port: int):
    address = config.parse_address(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text
