# Copyright: Contributors to the Farshore project
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""The files that a plan's hooks and probes are made of, as they are sent with the plan."""

from __future__ import annotations

import base64
import os
import re

from ansible_collections.farshore.dr.plugins.module_utils.errors import BadParameter

#: As the control plane has them; what is larger is refused here, before it is sent.
MOST_FILES = 512
LARGEST_BYTES = 2 * 1024 * 1024

_LEFT_OUT = ("~", ".pyc", ".retry", ".swp", ".orig")


def may_name_files(text):
    """Say whether a plan's text may name a file of tasks; the control plane says which ones."""
    return re.search(r"\b(hooks|ansible)\b", text) is not None


def collect(root, named):
    """Return what lies beside a plan in ``root`` and goes with it: content as base64, by path.

    Of each file of ``named`` the folder just below ``root`` that it is in goes as a whole, so that tasks find what they
    include. Names that begin with a dot are left out, links are refused.
    """
    found = {}
    for name in named:
        top = name.split("/")[0]
        if top == name:
            _take(found, root, name)
            continue
        if os.path.islink(os.path.join(root, top)):
            raise BadParameter(f"{top} is a link", hint="Files of hooks are sent as they are; put them there.")
        for folder, folders, files in os.walk(os.path.join(root, top)):
            folders[:] = sorted(one for one in folders if not one.startswith(".") and one != "__pycache__")
            for one in sorted(files):
                if not one.startswith(".") and not one.endswith(_LEFT_OUT):
                    path = os.path.relpath(os.path.join(folder, one), root)
                    _take(found, root, path.replace(os.sep, "/"))
            for one in folders:
                if os.path.islink(os.path.join(folder, one)):
                    raise BadParameter(
                        f"{os.path.join(folder, one)} is a link",
                        hint="Files of hooks are sent as they are; put them there.",
                    )
    return dict((path, base64.b64encode(content).decode("ascii")) for path, content in found.items())


def _take(found, root, path):
    whole = os.path.join(root, path)
    if path in found:
        return
    if os.path.islink(whole):
        raise BadParameter(f"{whole} is a link", hint="Files of hooks are sent as they are; put them there.")
    try:
        with open(whole, "rb") as source:
            found[path] = source.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        return  # the control plane says where the plan names it
    except OSError as error:
        raise BadParameter(f"{whole} cannot be read: {error.strerror}") from error
    if len(found) > MOST_FILES or sum(len(one) for one in found.values()) > LARGEST_BYTES:
        raise BadParameter(
            f"the hooks have more than {MOST_FILES} files, or more than {LARGEST_BYTES // 1024} KiB",
            hint="Only what tasks need belongs beside them; large things are fetched from where they are kept.",
        )
