"""Errors as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import http
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from farshore.control.planning.source import dotted
from farshore.errors import FarshoreError, Retry

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
#: When a call that may succeed later is worth another try.
RETRY_AFTER_S = 2


def problem(error: FarshoreError) -> dict[str, Any]:
    """Return the body that tells of ``error``."""
    status = type(error).status
    return {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "code": error.code,
        "detail": error.message,
        "field": error.field,
        "hint": error.hint,
        "evidence": error.evidence,
    }


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` as a problem."""
    app.add_exception_handler(FarshoreError, _farshore)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _internal)


def _respond(body: dict[str, Any], headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(body, status_code=body["status"], headers=headers, media_type=MEDIA_TYPE)


def _farshore(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FarshoreError)  # noqa: S101 - registered for it
    headers = {"WWW-Authenticate": "Bearer"} if type(error).status == 401 else {}
    if isinstance(error, Retry):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return _respond(problem(error), headers)


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    problems = [
        {"field": dotted(item["loc"][1:]) or str(item["loc"][0]), "message": item["msg"]} for item in error.errors()
    ][:20]
    first = problems[0] if problems else {"field": None, "message": "the request is not valid"}
    return _respond(
        {
            "type": "about:blank",
            "title": http.HTTPStatus.UNPROCESSABLE_ENTITY.phrase,
            "status": 422,
            "code": "invalid",
            "detail": f"{first['field']}: {first['message']}",
            "field": first["field"],
            "hint": "",
            "evidence": {"problems": problems},
        }
    )


def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    body = {
        "type": "about:blank",
        "title": http.HTTPStatus(error.status_code).phrase,
        "status": error.status_code,
        "code": http.HTTPStatus(error.status_code).phrase.lower().replace(" ", "-"),
        "detail": str(error.detail),
        "field": None,
        "hint": "See /api/v1/openapi.json for what exists." if error.status_code in {404, 405} else "",
        "evidence": {},
    }
    return _respond(body, dict(error.headers) if error.headers else None)


def _internal(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _respond(
        problem(FarshoreError("the control plane met an error of its own", hint="Its log tells more: control.log."))
    )
