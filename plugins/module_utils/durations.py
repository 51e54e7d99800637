# Copyright: Contributors to the Farshore project
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""Durations as people write them: ``30s``, ``15m``, ``4h``, ``2d`` or a number of seconds."""

from __future__ import annotations

import re

from ansible_collections.farshore.dr.plugins.module_utils.errors import BadParameter

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_FORM = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([smhd]?)\s*$")


def seconds(text, field):
    """Return ``text`` as a float of seconds, None for None; ``field`` names the parameter in the error."""
    if text is None:
        return None
    found = _FORM.match(str(text))
    if found is None:
        raise BadParameter(
            f"{text!r} is no duration", field=field, hint="Write for example 30s, 15m, 4h, or a number of seconds."
        )
    return float(found.group(1)) * _SECONDS[found.group(2)]
