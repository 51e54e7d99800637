"""A double of the control plane: a real HTTP server on loopback that speaks the documented JSON and keeps state.

It logs every request, so that a test can prove what a module sent, and can be told to answer wrongly.
"""

from __future__ import annotations

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "fsh_1_0123456789abcdef"
SITE = {"state": "no-node", "nodes": [], "networks": [], "pool": None, "machine_count": 0}


class Problem(Exception):
    def __init__(self, status, code, detail, field=None, hint="", evidence=None, headers=None):
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}
        self.body = {
            "type": "about:blank",
            "title": code,
            "status": status,
            "code": code,
            "detail": detail,
            "field": field,
            "hint": hint,
            "evidence": evidence or {},
        }


class State:
    """What the control plane knows. Each of its methods is one route."""

    def __init__(self):
        self.sites = {}
        self.links = {}
        self.nodes = {}
        self.plans = {}
        self.checkpoints = []
        self.runs = {}
        self.reports = {}
        self.preflight = {"ready": True, "score": 100, "findings": []}
        self.catalog = {"catalog_id": "cat-1", "generation": 1, "bundles": [{"site": "beta", "current": True}]}
        self.compared = {"agrees": True, "manifests": 2, "foreign": 0, "drafts": 0, "findings": []}
        self.keys = {}
        self.polls = {}
        self.polls_until_end = 1

    # sites, nodes, plans: the same three verbs
    def put(self, kind, name, body):
        shelf = getattr(self, kind)
        before = shelf.get(name)
        after = self.wanted(kind, name, body)
        shelf[name] = after
        return (200 if before else 201), after, {"X-Farshore-Changed": "true" if after != before else "false"}

    def wanted(self, kind, name, body):
        before = getattr(self, kind).get(name)
        if kind == "sites":
            return dict(before or SITE, name=name, **body)
        if kind == "links":
            source, target = name.split("/")
            return dict(body, source_site=source, target_site=target)
        if kind == "nodes":
            if body["site"] not in self.sites:
                raise Problem(
                    422, "unknown-site", f"site {body['site']!r} does not exist", field="site", hint="Register it."
                )
            return dict(before or {"state": "new", "version": None}, name=name, **body)
        definition = body.get("definition") or {"name": name, "text": body["source"]}
        if "machines: [" in str(body.get("source")):
            raise Problem(
                422, "plan-invalid", "a list does not end", field="machines", evidence={"line": 3, "column": 11}
            )
        if before and before["definition"] == definition:
            return before
        revision = before["revision"] + 1 if before else 1
        plan = before or {"activity": "inactive", "active_site": "alpha", "state": "unprotected", "conditions": []}
        plan = {"committed": True, "turned": True, "machines": [], **plan}
        return dict(plan, name=name, revision=revision, definition=definition)

    def preview(self, kind, name, body):
        before = getattr(self, kind).get(name)
        after = self.wanted(kind, name, body)
        return (
            200,
            {
                "changed": before != after,
                "before": before or {},
                "after": after,
                "warnings": ["only a preview"],
                "costs": {"before": before and {"per_month": 1.0}, "after": {"per_month": 2.0}},
            },
            {},
        )

    def one(self, kind, name):
        found = getattr(self, kind).get(name)
        if found is None:
            raise Problem(
                404, "not-found", f"{kind[:-1]} {name!r} does not exist", field="name", hint="List what there is."
            )
        return found

    # verbs of plans
    def protect(self, name, body):
        plan = self.one("plans", name)
        activity = {"protected": "active", "paused": "paused", "unprotected": "inactive"}[body["state"]]
        return plan, dict(plan, activity=activity)

    def start(self, kind, plan, **fields):
        run_id = f"run-{len(self.runs) + 1}"
        self.runs[run_id] = dict(
            {
                "run_id": run_id,
                "kind": kind,
                "plan": plan,
                "state": "running",
                "url": f"/runs/{run_id}",
                "report_url": None,
                "error": None,
                "steps": [{"name": "begin", "machine": None, "state": "running", "seconds": None, "detail": ""}],
                "machines": [],
                "cycles": [],
                "progress": {"done_bytes": 1 << 20, "total_bytes": 4 << 20, "note": ""},
                "end": "succeeded",
                "until": None,
                "next": "",
                "approval": None,
                "cancel_requested": False,
                "pause_requested": False,
                "retry_of": None,
                "retried_by": None,
            },
            **fields,
        )
        return self.runs[run_id]

    def ask(self, run_id, verb):
        run = self.one("runs", run_id)
        if verb == "retry":
            made = self.start(run["kind"], run["plan"], retry_of=run_id)
            run["retried_by"] = made["run_id"]
            return 202, {"run": shown(made), "changed": True}, {}
        changed = True
        if verb == "cancel":
            run["state"] = "cancelled"
        elif verb == "pause":
            changed = run["state"] != "paused"
            run.update(state="paused", pause_requested=True, next="paused until it is resumed")
        elif verb == "resume":
            changed = run["state"] == "paused"
            run.update(state="running", pause_requested=False, next="")
        elif verb == "approve":
            if run["state"] != "waiting-approval":
                raise Problem(409, "not-waiting", f"{run_id} does not wait for approval")
            run.update(state="running", next="", approval={"people": 1, "by": [{"actor": "me", "at": "now"}]})
        return 200, shown(run), {"X-Farshore-Changed": "true" if changed else "false"}

    def report(self, run_id, name):
        if run_id not in self.reports:
            raise Problem(404, "report-unknown", f"run {run_id} has no report")
        return self.reports[run_id][name]

    def look(self, run_id):
        run = self.one("runs", run_id)
        self.polls[run_id] = self.polls.get(run_id, 0) + 1
        until = self.polls_until_end if run["until"] is None else run["until"]
        if run["state"] == "running" and self.polls[run_id] > until:
            run["state"] = run["end"]
            run["ended_at"] = "2999-01-01T00:00:00Z"
            run["steps"] = [dict(step, state="succeeded", seconds=1.25) for step in run["steps"]]
            if run["kind"] == "checkpoint":
                self.checkpoints.insert(0, run["makes"])
        return 200, run, {}


def shown(run):
    return {key: value for key, value in run.items() if key not in ("end", "until", "makes")}


class Double:
    """Start with ``with Double() as double``; ``double.url`` is its address."""

    def __init__(self, tls=None):
        self.state = State()
        self.log = []  # (method, path, body, headers)
        self.faults = []  # each answers one request: a Problem, raw bytes, an address to redirect to, or "drop"
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *unused):
                pass

            def answer(self, status, value, headers=None, content="application/json"):
                body = b"" if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", content)
                self.send_header("Content-Length", str(len(body)))
                for key, text in (headers or {}).items():
                    self.send_header(key, text)
                self.end_headers()
                self.wfile.write(body)

            def misbehave(self, fault):
                if fault == "drop":
                    self.close_connection = True
                elif isinstance(fault, bytes):
                    self.answer(200, fault, content="text/html")
                elif isinstance(fault, str):
                    self.answer(302, None, {"Location": fault})
                else:
                    raise fault

            def authenticate(self):
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    raise Problem(401, "token-invalid", "the token is not known or has expired")

            def handle_one(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                parts = urlsplit(self.path)
                double.log.append((self.command, self.path, body, dict(self.headers)))
                try:
                    if double.faults:
                        self.misbehave(double.faults.pop(0))
                        return
                    self.authenticate()
                    key = self.headers.get("Idempotency-Key")
                    if key in double.state.keys:
                        status, value, headers = double.state.keys[key]
                    else:
                        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
                        status, value, headers = double.route(self.command, parts.path, query, body)
                        if key:
                            double.state.keys[key] = copy.deepcopy((status, value, headers))
                    self.answer(status, value, headers)
                except Problem as problem:
                    self.answer(problem.status, problem.body, problem.headers, "application/problem+json")

            do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = handle_one

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        scheme = "http"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *unused):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def requests(self):
        return [(method, path) for method, path, unused, unused_too in self.log]

    def snapshot(self):
        return copy.deepcopy({key: value for key, value in vars(self.state).items() if key not in ("runs", "polls")})

    def route(self, method, path, query, body):
        assert path.startswith("/api/v1/"), path
        parts = [unquote(part) for part in path[len("/api/v1/") :].split("/")]
        last, colon, verb = parts[-1].partition(":")
        if colon:
            parts[-1] = last
        state = self.state
        kind = parts[0]
        if kind == "catalog":
            return 200, state.catalog, {}
        if verb == "catalog-check":
            return 200, dict(state.compared, site=parts[1]), {}
        if parts[2:] == ["preflight"]:
            return 200, dict(state.preflight, plan=parts[1]), {}
        if method == "GET" and len(parts) == 1:
            if kind == "runs":
                found = [shown(run) for run in reversed(list(state.runs.values()))]
            elif kind == "checkpoints":
                found = state.checkpoints
            else:
                found = list(getattr(state, kind).values())
            wanted = {key: value for key, value in query.items() if key in ("plan", "kind", "state", "site", "name")}
            found = [one for one in found if all(str(one.get(key)) == value for key, value in wanted.items())]
            return 200, {"items": found[: int(query.get("limit", 100))]}, {}
        if kind == "runs":
            if verb:
                return state.ask(parts[1], verb)
            if len(parts) == 3:
                return 200, state.report(parts[1], parts[2]), {}
            status, run, headers = state.look(parts[1])
            return status, shown(run), headers
        if kind == "checkpoints":
            found = [one for one in state.checkpoints if one["checkpoint_id"] == parts[1]]
            if not found:
                raise Problem(404, "not-found", f"checkpoint {parts[1]!r} does not exist")
            if method == "PATCH":
                found[0].update({"pinned" if key == "pin" else key: value for key, value in body.items()})
            if len(parts) == 3 and parts[2] == "hold":
                before = found[0].get("hold")
                found[0]["hold"] = {"reason": body["reason"], "by": "me"} if method == "PUT" else None
                return 200, found[0], {"X-Farshore-Changed": str(before != found[0]["hold"]).lower()}
            if verb == "clear":
                found[0]["suspicion"] = {"verdict": "cleared", "cleared": {"note": body["note"]}}
                return 200, found[0], {"X-Farshore-Changed": "true"}
            if verb == "scrub":
                run = state.start("scrub", found[0]["plan"])
                found[0]["integrity"] = "verified"
                found[0]["addenda"] = [{"verdict": "verified", "at": "2026-01-01T00:00:00Z"}]
                return 202, {"run": shown(run), "changed": True}, {}
            if method == "DELETE":
                if found[0]["pinned"]:
                    raise Problem(
                        409, "checkpoint-pinned", f"checkpoint {parts[1]!r} is pinned", hint="Unpin it first."
                    )
                state.checkpoints.remove(found[0])
                return 204, None, {}
            return 200, found[0], {}
        if kind == "plans" and len(parts) == 4:
            return self.ensure_checkpoint(parts[1], parts[3], body)
        name = parts[1]
        if kind == "site-links":
            kind, name = "links", "/".join(parts[1:])
        if method == "GET":
            return 200, state.one(kind, name), {}
        if method == "PUT":
            return state.put(kind, name, body)
        if method == "DELETE":
            state.one(kind, name)
            del getattr(state, kind)[name]
            return 204, None, {"X-Farshore-Changed": "true"}
        if verb == "preview":
            return state.preview(kind, name, body)
        if verb == "token":
            state.one("nodes", name)
            return (
                200,
                {"token": "fsn_1_secret", "expires_at": "2999-01-01T00:00:00Z", "ca_pem": "PEM", "node_url": "u"},
                {},
            )
        return self.verb(name, verb, body)

    def verb(self, name, verb, body):
        state = self.state
        plan = state.one("plans", name)
        if verb in ("protect", "protect-preview"):
            before, after = state.protect(name, body)
            if verb == "protect-preview":
                return 200, {"changed": before != after, "before": before, "after": after, "warnings": []}, {}
            state.plans[name] = after
            return 200, after, {"X-Farshore-Changed": "true" if before != after else "false"}
        if verb == "drill-end":
            return 202, {"run": shown(state.start("cleanup", name)), "changed": True}, {}
        if verb == "commit":
            changed, plan["committed"] = not plan["committed"], True
            return 200, {"changed": changed, "plan": plan}, {}
        kind, _dash, preview = verb.partition("-")
        if kind == "rollback" and plan["committed"]:
            raise Problem(409, "committed", f"the failover of plan {name!r} was committed")
        changed = not (kind == "failover" and plan["active_site"] == body["to_site"])
        if kind == "replicate" and body.get("max_age_s") is not None and state.checkpoints:
            changed = False
        if preview:
            return (
                200,
                {"changed": changed, "before": {}, "after": {"creates": ["db"]} if changed else {}, "warnings": []},
                {},
            )
        if kind == "drill" and "drilling" in plan["conditions"]:
            raise Problem(409, "drill-running", f"a drill of plan {name!r} runs", hint="Wait for it.")
        if not changed:
            return 200, {"run": None, "changed": False}, {}
        return 202, {"run": shown(state.start(kind, name)), "changed": True}, {}

    def ensure_checkpoint(self, plan, label, body):
        self.state.one("plans", plan)
        for one in self.state.checkpoints:
            if one["label"] == label:
                changed = one["pinned"] != body["pin"]
                one["pinned"] = body["pin"]
                return 200, {"checkpoint": one, "run": None, "changed": changed}, {}
        made = {
            "checkpoint_id": f"cp-{len(self.state.runs) + 1}",
            "plan": plan,
            "label": label,
            "pinned": body["pin"],
            "level": "machine",
            "state": "published",
        }
        run = self.state.start("checkpoint", plan, makes=made)
        return 202, {"checkpoint": None, "run": shown(run), "changed": True}, {}
