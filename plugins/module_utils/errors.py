# Copyright: Contributors to the Farshore project
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

"""What can go wrong between a module and the control plane, one class per duty of the caller.

Nothing here ends a module: that happens once, in ``module.run``.
"""

from __future__ import annotations

import json


class ApiError(Exception):
    """The control plane, or the way to it, said no.

    ``code`` is stable and kebab-case, ``field`` the dotted path of the wrong input or None, ``hint`` the next step,
    ``evidence`` a dict of facts, ``status`` the HTTP status or None where no answer came.
    """

    code = "error"

    def __init__(self, message, code=None, field=None, hint="", evidence=None, status=None):
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.field = field
        self.hint = hint or ""
        self.evidence = evidence or {}
        self.status = status
        self.result = {}  # what else the module should return, such as the run that failed

    def __str__(self):
        text = f"{self.message} [{self.code}]"
        if self.field and self.field not in self.message:
            text = f"{self.field}: {text}"
        where = [str(self.evidence[key]) for key in ("line", "column") if self.evidence.get(key) is not None]
        if len(where) == 2:
            text = f"{text} (line {where[0]}, column {where[1]})"
        return f"{text} {self.hint}" if self.hint else text

    def to_result(self):
        """Return the keyword arguments of ``fail_json``."""
        result = dict(self.result)
        result.update(
            msg=str(self),
            code=self.code,
            field=self.field,
            hint=self.hint,
            evidence=self.evidence,
            status=self.status,
        )
        return result


class BadParameter(ApiError):
    """A parameter of the module is wrong; found before anything was sent."""

    code = "bad-parameter"


class Invalid(ApiError):
    """The control plane refused the content (400, 422); ``field`` names what is wrong."""

    code = "invalid"


class Unauthenticated(ApiError):
    """The token is missing, wrong or expired (401)."""

    code = "unauthenticated"


class Forbidden(ApiError):
    """The token's role does not cover this (403)."""

    code = "forbidden"


class NotFound(ApiError):
    """The named object does not exist (404)."""

    code = "not-found"


class Conflict(ApiError):
    """The state of the object does not allow this now (409)."""

    code = "conflict"


class Unavailable(ApiError):
    """No answer, or one that says: later (429, 502, 503, 504). Trying again may help."""

    code = "unavailable"


class BadAnswer(ApiError):
    """Something answered that is no control plane, or one that is broken."""

    code = "bad-answer"


class WaitTimeout(ApiError):
    """The run goes on, but the module waits no longer."""

    code = "wait-timeout"


class Interrupted(ApiError):
    """The module was told to stop while it waited."""

    code = "interrupted"


class RunFailed(ApiError):
    """The run ended otherwise than well."""

    code = "run-failed"


_BY_STATUS = {
    400: Invalid,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: Invalid,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}

_NEXT_STEP = {
    401: "Give a valid token: parameter token or FARSHORE_TOKEN, see farshore.env of the control plane.",
    403: "Use a token of a role that covers this.",
}


def from_response(status, body):
    """Return the error that an HTTP answer of ``status`` with ``body`` (bytes) stands for."""
    cls = _BY_STATUS.get(status, BadAnswer)
    try:
        problem = json.loads(body.decode("utf-8"))
    except (UnicodeDecodeError, ValueError):
        problem = None
    if not isinstance(problem, dict) or not ("detail" in problem or "title" in problem):
        return cls(
            f"the control plane answered with status {status} and no description",
            code=None if status in _BY_STATUS else "bad-answer",
            hint=_NEXT_STEP.get(status, "Is the address that of a control plane? Its log may say more."),
            status=status,
        )
    detail = problem.get("detail")
    return cls(
        str(detail or problem.get("title")),
        code=problem.get("code"),
        field=problem.get("field"),
        hint=problem.get("hint") or _NEXT_STEP.get(status, ""),
        evidence=problem.get("evidence") if isinstance(problem.get("evidence"), dict) else {},
        status=status,
    )
