"""What goes with a plan: whole folders of its hooks, no links, nothing hidden."""

from __future__ import annotations

import base64

import pytest
from ansible_collections.farshore.dr.plugins.module_utils import hook_files
from ansible_collections.farshore.dr.plugins.module_utils.errors import BadParameter


@pytest.fixture
def root(tmp_path):
    for path in ("hooks/a.yml", "hooks/templates/x.j2", "hooks/.git/config", "hooks/a.yml~", "b.yml", "other/c.yml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    return tmp_path


def test_of_a_file_in_a_folder_the_folder_goes(root):
    found = hook_files.collect(str(root), ["hooks/a.yml", "b.yml", "gone/d.yml", "e.yml"])
    assert sorted(found) == ["b.yml", "hooks/a.yml", "hooks/templates/x.j2"]
    assert base64.b64decode(found["b.yml"]) == b"b.yml"


@pytest.mark.parametrize("link", ["hooks/link.yml", "hooks/folder", "linked"])
def test_a_link_is_refused(root, link):
    (root / link).symlink_to("/etc")
    named = ["hooks/a.yml"] if link.startswith("hooks") else ["linked/a.yml"]
    with pytest.raises(BadParameter, match="is a link"):
        hook_files.collect(str(root), named)


def test_too_much_is_refused_before_it_is_sent(root):
    (root / "hooks" / "big").write_bytes(bytes(hook_files.LARGEST_BYTES + 1))
    with pytest.raises(BadParameter, match="more than"):
        hook_files.collect(str(root), ["hooks/a.yml"])


@pytest.mark.parametrize(("text", "may"), [("hooks: {}", True), ("type: ansible", True), ("name: shop", False)])
def test_only_plans_that_may_name_files_are_asked_about(text, may):
    assert hook_files.may_name_files(text) is may
