"""The two web applications of one control plane."""

from __future__ import annotations

import importlib
import importlib.util

from fastapi import Depends, FastAPI

from farshore import __version__
from farshore.control.api import checkpoints, node, plans, problems, recovery, runs, sites, system, tokens
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
    api = _app("Farshore", _ABOUT, ctx)
    for module in (system, sites, plans, checkpoints, recovery, runs, tokens):
        api.include_router(module.router, dependencies=[Depends(authorise)])
    nodes = _app("Farshore nodes", "How nodes enrol, pull tasks and report. Mutual TLS.", ctx)
    nodes.include_router(node.router)
    for app, table, prefix in ((api, API_ROLES, "/api/v1"), (nodes, NODE_ROLES, "/node/v1")):
        odd = routes(app, prefix) - set(table)
        if odd:
            raise RuntimeError(f"routes without an entry in the table of roles: {sorted(odd)}")
    if importlib.util.find_spec("farshore.control.ui") is not None:
        importlib.import_module("farshore.control.ui").mount(api)
    return api, nodes


def _app(title: str, about: str, ctx: Context) -> FastAPI:
    app = FastAPI(title=title, version=__version__, description=about, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.farshore = ctx
    problems.install(app)
    return app
