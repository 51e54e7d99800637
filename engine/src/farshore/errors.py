"""Errors by the duty of who catches them.

Every error has a stable ``code`` (kebab-case), a message that names the object or field, and a ``hint`` with the next
step. The code becomes the CLI's exit status, ``problem+json`` and a module's ``msg``. Evidence stays in fields.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final


class FarshoreError(Exception):
    """Root of all errors that Farshore raises on purpose.

    Args:
        message: what happened, naming the object.
        code: stable name of the kind of error, kebab-case; the class has a default.
        hint: the next step for the person who reads it.
        field: dotted path of the input that is wrong, where one is (``machines[0].rpo``).
        evidence: JSON values that prove it. Never a secret.
    """

    code: str = "internal"
    status: ClassVar[int] = 500
    exit_status: ClassVar[int] = 1

    def __init__(
        self, message: str, *, code: str | None = None, hint: str = "", field: str | None = None, **evidence: Any
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.hint = hint
        self.field = field
        self.evidence = evidence

    def to_dict(self) -> dict[str, Any]:
        """Return the wire form, understood by :func:`from_dict`."""
        return {
            "duty": type(self).__name__,
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "field": self.field,
            "evidence": self.evidence,
        }

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]" + (f" {self.hint}" if self.hint else "")


class Retry(FarshoreError):
    """The same call may succeed later; try again after a pause, with a limit."""

    code = "try-again"
    status = 503
    exit_status = 75


class Reconnect(FarshoreError):
    """The connection is of no more use: drop it, open another, then repeat what was in flight."""

    code = "connection-lost"
    status = 502
    exit_status = 75


class RestartFromCheckpoint(FarshoreError):
    """The session or point is gone: begin the work again from the last durable state."""

    code = "restart-from-checkpoint"
    status = 409
    exit_status = 75


class Permanent(FarshoreError):
    """Repeating changes nothing; a person or a change of settings has to act."""

    code = "permanent"
    status = 422
    exit_status = 1


class Corruption(FarshoreError):
    """Bytes are not what they were said to be. Never resend blindly, never publish."""

    code = "corruption"
    status = 500
    exit_status = 70


class Fenced(FarshoreError):
    """Somebody with a higher epoch, term or generation owns this now: stop at once, touch nothing."""

    code = "fenced"
    status = 409
    exit_status = 77


class Invalid(Permanent):
    """An input is wrong; ``field`` names it."""

    code = "invalid"
    status = 422
    exit_status = 65


class NotFound(Permanent):
    """A named object does not exist."""

    code = "not-found"
    status = 404
    exit_status = 66


class Conflict(Permanent):
    """The object's state does not allow this now."""

    code = "conflict"
    status = 409
    exit_status = 73


class Unauthenticated(Permanent):
    """No valid credential."""

    code = "unauthenticated"
    status = 401
    exit_status = 77


class Forbidden(Permanent):
    """The credential is valid but does not cover this."""

    code = "forbidden"
    status = 403
    exit_status = 77


class NoSpace(Permanent):
    """A pool or file system is full."""

    code = "no-space"
    status = 507
    exit_status = 74


class Unavailable(Retry):
    """A peer that is needed cannot be reached."""

    code = "unavailable"
    exit_status = 69


#: Names that evidence must not have: the constructor's own.
_FIELDS: Final = frozenset({"self", "message", "code", "hint", "field"})
_BY_NAME: Final[dict[str, type[FarshoreError]]] = {
    cls.__name__: cls
    for cls in (
        FarshoreError,
        Retry,
        Reconnect,
        RestartFromCheckpoint,
        Permanent,
        Corruption,
        Fenced,
        Invalid,
        NotFound,
        Conflict,
        Unauthenticated,
        Forbidden,
        NoSpace,
        Unavailable,
    )
}


def from_dict(data: dict[str, Any]) -> FarshoreError:
    """Return the error whose :meth:`FarshoreError.to_dict` gave ``data``; unknown duties become :class:`Permanent`."""
    cls = _BY_NAME.get(str(data.get("duty")), Permanent)
    given = data.get("evidence")
    evidence = {str(k): v for k, v in given.items() if k not in _FIELDS} if isinstance(given, dict) else {}
    return cls(
        str(data.get("message", "unknown error")),
        code=str(data["code"]) if data.get("code") else None,
        hint=str(data.get("hint") or ""),
        field=str(data["field"]) if data.get("field") else None,
        **evidence,
    )
