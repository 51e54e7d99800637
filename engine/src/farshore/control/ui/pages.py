"""The pages, and the few actions that they offer."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlencode

from fastapi import FastAPI
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from farshore import __version__
from farshore.control.ui import figures, session
from farshore.control.ui.inside import Inside, segment
from farshore.errors import Conflict, FarshoreError, Forbidden, Invalid, NotFound, Unauthenticated
from farshore.model.tones import tone

HERE: Final = Path(__file__).parent
ROLES: Final = ("viewer", "operator", "recovery-admin", "admin")
RECENT_RUNS: Final = 8
#: No form of ours is larger.
_FORM_BYTES: Final = 16 * 1024
#: What a page may say after an action, by the word in the address: text never comes from the address itself.
SAID: Final = {
    "fresh": "The newest checkpoint is younger than that; nothing was to be done.",
    "no-drill": "No drill is up; nothing was to be done.",
    "cancelled": "The run is asked to stop; it ends at its next safe point.",
    "paused": "The run begins nothing new; what it has at work ends.",
    "resumed": "The run goes on.",
    "approved": "Your approval is recorded.",
}
#: What can be asked of a run, and the word for what is said then.
RUN_VERBS: Final = {
    "cancel": "cancelled",
    "pause": "paused",
    "resume": "resumed",
    "approve": "approved",
    "retry": "resumed",
}

Handler = Callable[[Request], Awaitable[Response]]


class _Static(StaticFiles):
    """Our own files: never sniffed, kept by the browser (their address has their digest)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"public, max-age=604800"),
                ]
            await send(message)

        await super().__call__(scope, receive, with_headers)


def _digest() -> str:
    found = hashlib.sha256()
    for path in sorted((HERE / "static").iterdir()):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


@functools.cache
def templates() -> Environment:
    """Return the templates; everything that they print is escaped."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"version": __version__, "assets": _digest(), "figures": figures}
    environment.filters |= {
        "ago": figures.ago,
        "span": figures.span,
        "exact": figures.exact,
        "size": figures.size,
        "rate": figures.rate,
        "clock": figures.clock,
        "tone": tone,
        "segment": segment,
        "condition": figures.condition_name,
        "error_text": figures.error_text,
    }
    return environment


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at the page, and the API as they see it."""

    api: Inside
    token: str
    name: str
    role: str

    def may(self, least: str) -> bool:
        """Say whether the visitor's role is ``least`` or more; the API has the last word."""
        return self.role in ROLES and ROLES.index(self.role) >= ROLES.index(least)

    @property
    def form_key(self) -> str:
        """The value that proves a form to be of this session."""
        return session.form_key(self.token)


async def visitor(request: Request) -> Visitor:
    """Return who sent ``request``.

    Raises:
        Unauthenticated: nobody whom we know.
    """
    token = session.token_of(request)
    if token is None:
        raise Unauthenticated("no session")
    api = Inside.of(request, token)
    me = await api.get("/whoami")
    return Visitor(api, token, me["name"], me["role"])


async def form(request: Request) -> dict[str, str]:
    """Return the fields of a form.

    Raises:
        Invalid: if it is too large or no form.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _FORM_BYTES:
            raise Invalid("the form is too large")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise Invalid("this is no form") from error
    return {name: values[-1] for name, values in fields.items()}


def render(name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """Return the page that template ``name`` makes of ``values``."""
    return HTMLResponse(templates().get_template(name).render(**values), status_code=status)


def _is_fragment(request: Request) -> bool:
    return request.headers.get("hx-request") == "true"


def page(handler: Handler) -> Handler:
    """Make a page of ``handler``: errors become pages, strangers are asked for a token, headers are set."""

    @functools.wraps(handler)
    async def wrapped(request: Request) -> Response:
        response: Response
        try:
            response = await handler(request)
        except Unauthenticated:
            wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            login = "/login" if request.method != "GET" or wanted == "/" else f"/login?{urlencode({'next': wanted})}"
            if _is_fragment(request):
                response = Response(status_code=401, headers={"HX-Redirect": "/login"})
            else:
                response = RedirectResponse(login, status_code=303)
            if session.token_of(request):
                session.end(response)
        except FarshoreError as error:
            response = render("error.html", status=type(error).status, error=error, me=None)
        for name, value in session.HEADERS.items():
            response.headers[name] = value
        return response

    return wrapped


def _view(request: Request, name: str, me: Visitor, **values: Any) -> Response:
    """Return the page, or only its living part when that is what the page itself asks for."""
    part = f"_{name}" if _is_fragment(request) else name
    said = SAID.get(request.query_params.get("said", ""))
    return render(part, me=me, said=said, **values)


@page
async def overview(request: Request) -> Response:
    """Sites, plans and runs."""
    me = await visitor(request)
    api = me.api
    sites, links, nodes, plans, runs = await asyncio.gather(
        api.items("/sites"),
        api.items("/site-links"),
        api.items("/nodes"),
        api.items("/plans"),
        api.items("/runs", limit=RECENT_RUNS),
    )
    newest = await asyncio.gather(*(api.items("/checkpoints", plan=plan["name"], limit=1) for plan in plans))
    return _view(
        request,
        "overview.html",
        me,
        sites=sites,
        links=links,
        nodes=nodes,
        plans=[plan | {"newest": found[0] if found else None} for plan, found in zip(plans, newest, strict=True)],
        runs=runs,
    )


@page
async def plan(request: Request) -> Response:
    """One plan: machines, checkpoints, cycles."""
    return await _plan(request, await visitor(request))


async def _plan(request: Request, me: Visitor, error: FarshoreError | None = None) -> Response:
    name = request.path_params["name"]
    api = me.api
    document, checkpoints, runs, machines = await asyncio.gather(
        api.get(f"/plans/{segment(name)}"),
        api.items("/checkpoints", plan=name, limit=figures.CYCLES),
        api.items("/runs", plan=name, limit=RECENT_RUNS),
        api.items("/machines", plan=name),
    )
    known = {machine["name"]: machine for machine in machines}
    # Not with each renewal of the live part: it changes slowly.
    ready = None if _is_fragment(request) else await api.get(f"/plans/{segment(name)}/preflight")
    response = _view(
        request,
        "plan.html",
        me,
        plan=document,
        preflight=ready,
        checkpoints=checkpoints,
        runs=runs,
        machines=[(machine, known.get(machine["name"])) for machine in document["machines"]],
        kept_drill=next((run for run in runs if (run.get("facts") or {}).get("kept")), None),
        error=error,
    )
    if error:
        response.status_code = type(error).status
    return response


@page
async def runs(request: Request) -> Response:
    """The newest runs."""
    me = await visitor(request)
    return _view(request, "runs.html", me, runs=await me.api.items("/runs", limit=50))


@page
async def run(request: Request) -> Response:
    """One run: steps, machines, probes."""
    me = await visitor(request)
    document = await me.api.get(f"/runs/{segment(request.path_params['run_id'])}")
    return _view(request, "run.html", me, run=document, bars=figures.timeline(document), refused=None)


def _to_run(answer: dict[str, Any], otherwise: str) -> Response:
    run_document = answer["run"]
    target = f"/runs/{segment(run_document['run_id'])}" if run_document else otherwise
    return RedirectResponse(target, status_code=303)


async def _act(request: Request, verb: str, body: Callable[[dict[str, str]], dict[str, Any]], said: str) -> Response:
    """Do what a form on a plan's page asks for, and show the run; a refusal is shown on the plan's page."""
    me = await visitor(request)
    fields = await form(request)
    session.check_form(request, me.token, fields.get("key", ""))
    name = request.path_params["name"]
    try:
        answer = await me.api.post(f"/plans/{segment(name)}:{verb}", body(fields))
    except (Conflict, Invalid) as error:
        return await _plan(request, me, error)
    return _to_run(answer, f"/plans/{segment(name)}?said={said}")


@page
async def replicate(request: Request) -> Response:
    """Run a cycle now."""
    return await _act(request, "replicate", lambda _: {}, "fresh")


@page
async def drill(request: Request) -> Response:
    """Start a drill."""
    return await _act(
        request,
        "drill",
        lambda fields: {"checkpoint": fields.get("checkpoint") or "latest", "keep": fields.get("keep") == "yes"},
        "fresh",
    )


@page
async def drill_end(request: Request) -> Response:
    """Clean up a drill that was kept."""
    return await _act(request, "drill-end", lambda _: {}, "no-drill")


@page
async def ask(request: Request) -> Response:
    """Ask something of a run; a refusal is shown on its page."""
    me = await visitor(request)
    fields = await form(request)
    session.check_form(request, me.token, fields.get("key", ""))
    run_id, verb = segment(request.path_params["run_id"]), request.path_params["verb"]
    if verb not in RUN_VERBS:
        raise NotFound(f"a run knows no {verb!r}")
    try:
        answer = await me.api.post(f"/runs/{run_id}:{verb}", {})
    except (Conflict, Invalid, Forbidden) as error:
        document = await me.api.get(f"/runs/{run_id}")
        response = _view(request, "run.html", me, run=document, bars=figures.timeline(document), refused=error)
        response.status_code = type(error).status
        return response
    if verb == "retry":
        return _to_run(answer, f"/runs/{run_id}")
    return RedirectResponse(f"/runs/{run_id}?said={RUN_VERBS[verb]}", status_code=303)


@page
async def scrub(request: Request) -> Response:
    """Read a checkpoint back."""
    me = await visitor(request)
    fields = await form(request)
    session.check_form(request, me.token, fields.get("key", ""))
    checkpoint = segment(request.path_params["checkpoint_id"])
    return _to_run(await me.api.post(f"/checkpoints/{checkpoint}:scrub", {}), "/runs")


@page
async def login(request: Request) -> Response:
    """Ask for a token, and give a session for a valid one."""
    if request.method == "GET":
        wanted = session.local_path(request.query_params.get("next", "/"))
        return render("login.html", me=None, wanted=wanted, refused="")
    session.check_origin(request)
    fields = await form(request)
    # What a header cannot carry is no token of ours; the API is asked all the same, and says so.
    token = "".join(fields.get("token", "").split()).encode("ascii", "replace").decode()
    wanted = session.local_path(fields.get("next", "/"))
    try:
        await Inside.of(request, token).get("/whoami")
    except Unauthenticated as error:
        return render("login.html", status=401, me=None, wanted=wanted, refused=f"{error.message}. {error.hint}")
    response = RedirectResponse(wanted, status_code=303)
    session.begin(response, token)
    return response


@page
async def logout(request: Request) -> Response:
    """End the session."""
    token = session.token_of(request)
    if token:
        fields = await form(request)
        session.check_form(request, token, fields.get("key", ""))
    response = RedirectResponse("/login", status_code=303)
    session.end(response)
    return response


def mount(app: FastAPI) -> None:
    """Add the pages to the application that serves ``/api/v1``. They are no part of its OpenAPI document."""
    app.router.routes.extend(
        [
            Route("/", overview, methods=["GET"]),
            Route("/plans/{name}", plan, methods=["GET"]),
            Route("/plans/{name}/replicate", replicate, methods=["POST"]),
            Route("/plans/{name}/drill", drill, methods=["POST"]),
            Route("/plans/{name}/drill-end", drill_end, methods=["POST"]),
            Route("/runs", runs, methods=["GET"]),
            Route("/runs/{run_id}", run, methods=["GET"]),
            Route("/runs/{run_id}/{verb}", ask, methods=["POST"]),
            Route("/checkpoints/{checkpoint_id}/scrub", scrub, methods=["POST"]),
            Route("/login", login, methods=["GET", "POST"]),
            Route("/logout", logout, methods=["POST"]),
            Mount("/static", _Static(directory=HERE / "static")),
        ]
    )
