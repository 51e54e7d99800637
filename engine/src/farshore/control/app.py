"""The two web applications of one control plane."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from fastapi import Depends, FastAPI

from farshore import __version__
from farshore.control.api import (
    catalog,
    checkpoints,
    links,
    node,
    plans,
    problems,
    recovery,
    runs,
    schemas,
    sites,
    system,
    tokens,
)
from farshore.control.api.limits import Limits
from farshore.control.auth.access import API_ROLES, NODE_ROLES, authorise, routes
from farshore.control.context import Context, open_context
from farshore.control.home import Home

_ABOUT = """
Farshore keeps recovery-ready copies of virtual machines on another site and brings them up there.

Send a bearer token. Errors are `application/problem+json` with a stable `code`. Changes take an `Idempotency-Key`;
`:preview` twins answer what a change would do and change nothing. Durations are seconds (`_s`), sizes bytes (`_bytes`),
times ISO 8601 in UTC.
"""


def create_apps(home: Home, context: Context | None = None) -> tuple[FastAPI, FastAPI]:
    """Return the application of people and programs and the one of nodes, over the same records.

    Raises:
        RuntimeError: a route has no entry in the table of roles.
    """
    ctx = context or open_context(home)
    api = _app("Farshore", _ABOUT, ctx, API_ROLES)
    for module in (system, sites, catalog, links, plans, checkpoints, recovery, runs, tokens):
        api.include_router(module.router, dependencies=[Depends(authorise)], responses=schemas.PROBLEMS)
    nodes = _app("Farshore nodes", "How nodes enrol, pull tasks and report. Mutual TLS.", ctx, NODE_ROLES)
    nodes.include_router(node.router)
    for app, table, prefix in ((api, API_ROLES, "/api/v1"), (nodes, NODE_ROLES, "/node/v1")):
        odd = routes(app, prefix) - set(table)
        if odd:
            raise RuntimeError(f"routes without an entry in the table of roles: {sorted(odd)}")
    if importlib.util.find_spec("farshore.control.ui") is not None:
        importlib.import_module("farshore.control.ui").mount(api)
    return api, nodes


class _Api(FastAPI):
    """An application whose description says what FastAPI cannot know: errors, credentials, least roles."""

    roles: dict[tuple[str, str], str]

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI 3.1 document."""
        if self.openapi_schema is None:
            document = super().openapi()
            parts = document.setdefault("components", {})
            parts.setdefault("schemas", {})["Problem"] = schemas.Problem.model_json_schema()
            parts["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer"},
                "certificate": {"type": "mutualTLS"},
            }
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    role = self.roles.get((method.upper(), path))
                    operation["x-farshore-role"] = role
                    kind = "certificate" if role == "node" else "token"
                    operation["security"] = [] if role == "anonymous" else [{kind: []}]
        return self.openapi_schema or {}


def _app(title: str, about: str, ctx: Context, roles: dict[tuple[str, str], str]) -> FastAPI:
    app = _Api(title=title, version=__version__, description=about, openapi_url=None, docs_url=None, redoc_url=None)
    app.roles = roles
    app.state.farshore = ctx
    problems.install(app)
    app.add_middleware(Limits)
    return app
