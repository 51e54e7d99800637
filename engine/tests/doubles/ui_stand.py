"""An API that gives the documented documents, for pages in states that a real one takes long to come to."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from farshore.control.ui import mount
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

MIB = 1 << 20
TOKENS = {"fsh_adm_x": "admin", "fsh_op_x": "operator", "fsh_view_x": "viewer"}


def iso(seconds_ago: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat().replace("+00:00", "Z")


@dataclass
class Stand:
    """What the API holds; tests change it."""

    sites: list[dict[str, Any]] = field(default_factory=list)
    site_links: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    plans: list[dict[str, Any]] = field(default_factory=list)
    machines: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    posts: list[tuple[str, str, Any]] = field(default_factory=list)
    refuse: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    preflight: dict[str, Any] = field(default_factory=lambda: {"ready": True, "score": 100, "findings": []})


def site(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "platform": "kvm",
        "description": "",
        "state": "online",
        "nodes": [f"{name}-1"],
        "networks": [],
        "pool": {"path": f"/var/lib/farshore-lab/{name}/pool", "capacity_bytes": 200 << 30, "free_bytes": 130 << 30},
        "inventory_at": iso(30),
        "machine_count": 2,
    } | more


def node(name: str, site: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "site": site,
        "roles": ["replication", "recovery"],
        "data_address": "127.0.0.1:9101",
        "state": "online",
        "last_seen": iso(3),
        "version": "0.1.0",
        "certificate_not_after": iso(-2_500_000),
    } | more


def plan(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "revision": 3,
        "definition": {"name": name, "description": "", "source_site": "alpha", "target_site": "beta", "rpo": 60.0},
        "source": f"name: {name}\nsource_site: alpha\ntarget_site: beta\nmachines:\n  - name: db\n  - name: web\n",
        "activity": "active",
        "active_site": "alpha",
        "direction": {"source": "alpha", "target": "beta"},
        "turned": True,
        "committed": True,
        "old_primaries": [],
        "state": "protected",
        "conditions": [],
        "epoch": 1,
        "rpo_s": 21.4,
        "rpo_target_s": 60.0,
        "machines": [
            {
                "name": each,
                "machine_id": f"id-{each}",
                "state": "protected",
                "rpo_s": rpo,
                "newest_checkpoint": f"cp-{each}",
            }
            for each, rpo in (("db", 21.4), ("web", 18.2))
        ],
        "groups": [f"grp-{name}-db", f"grp-{name}-web"],
        "next_cycle_at": iso(-24),
        "last_error": None,
    } | more


def machine(name: str, **more: Any) -> dict[str, Any]:
    return {
        "machine_id": f"id-{name}",
        "name": name,
        "site": "alpha",
        "power": "on",
        "cpus": 1,
        "memory_bytes": 192 * MIB,
        "disks": [{"disk_id": "vda", "size_bytes": 256 * MIB}, {"disk_id": "vdb", "size_bytes": 256 * MIB}],
        "nics": [],
        "plan": "shop",
        "state": "protected",
        "conditions": [],
        "epoch": 1,
        "active_site": "alpha",
        "rpo_s": 21.4,
        "newest_checkpoint": f"cp-{name}",
        "findings": [],
        "bottleneck": None,
    } | more


def checkpoint(number: int, name: str, seconds_ago: float, mode: str, moved: int, **more: Any) -> dict[str, Any]:
    return {
        "checkpoint_id": f"cp-01J9{number:04d}{name}",
        "group_id": f"grp-shop-{name}",
        "plan": "shop",
        "plan_revision": 3,
        "level": "machine",
        "evidence": {},
        "sequence": number,
        "epoch": 1,
        "ordered_at": iso(seconds_ago + 4),
        "taken_at": iso(seconds_ago + 3),
        "published_at": iso(seconds_ago),
        "pinned": False,
        "label": None,
        "note": None,
        "in_use_by": [],
        "integrity": "audited",
        "hold": None,
        "retention": {"stays": True, "reasons": ["count"]},
        "suspicion": {"verdict": "clean", "score": 2, "reasons": [], "tainted_by": None, "cleared": None},
        "addenda": [],
        "state": "published",
        "machines": [name],
        "disks": [],
        "stats": {
            "mode": mode,
            "disk_bytes": 512 * MIB,
            "changed_bytes": moved,
            "moved_bytes": moved,
            "zero_bytes": 0,
            "resent_bytes": 0,
            "seconds": 0.8 + moved / (90 * MIB),
            "reason": "",
        },
    } | more


def step(
    name: str, machine: str | None, state: str, began: float | None, ended: float | None, detail: str = ""
) -> dict[str, Any]:
    return {
        "name": name,
        "machine": machine,
        "state": state,
        "started_at": iso(began) if began is not None else None,
        "ended_at": iso(ended) if ended is not None else None,
        "seconds": began - ended if began is not None and ended is not None else None,
        "detail": detail,
    }


def run(run_id: str, **more: Any) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "kind": "drill",
        "plan": "shop",
        "state": "running",
        "created_at": iso(41),
        "started_at": iso(40),
        "ended_at": None,
        "actor": "first-admin (a1b2)",
        "params": {"checkpoint": "latest", "keep": False},
        "cancel_requested": False,
        "pause_requested": False,
        "approval": None,
        "retry_of": None,
        "retried_by": None,
        "next": "",
        "url": f"/runs/{run_id}",
        "report_url": f"/api/v1/runs/{run_id}/report",
        "error": None,
        "steps": [],
        "machines": [],
        "cycles": [],
        "progress": {"done_bytes": 0, "total_bytes": 0, "note": ""},
    } | more


def probe(kind: str, target: str, *, green: bool = True, detail: str = "") -> dict[str, Any]:
    return {
        "type": kind,
        "target": target,
        "green": green,
        "seconds": 7.4,
        "tries": 4,
        "detail": detail,
        "evidence": "",
    }


def failover_run(run_id: str) -> dict[str, Any]:
    return run(
        run_id,
        kind="failover",
        state="succeeded",
        created_at=iso(5401),
        started_at=iso(5400),
        ended_at=iso(5346),
        params={"to_site": "beta", "mode": "planned"},
        steps=[
            step("preflight", None, "succeeded", 5400, 5399.2),
            step("sync", None, "succeeded", 5399.2, 5395.1, "1.8 MiB moved while the machines run"),
            step("machine-stop", "web", "succeeded", 5395.1, 5391.4, "off, read back"),
            step("machine-stop", "db", "succeeded", 5391.4, 5386.7, "off, read back"),
            step("final sync", None, "succeeded", 5386.7, 5384.2, "of the stopped disks: 640 KiB"),
            step("machine-fence", "db", "succeeded", 5384.2, 5383.9),
            step("machine-fence", "web", "succeeded", 5384.2, 5383.8),
            step("raise epoch", None, "succeeded", 5383.8, 5383.8, "1 → 2, active at beta"),
            step("machine-create", "db", "succeeded", 5383.8, 5381.9),
            step("machine-create", "web", "succeeded", 5383.8, 5381.7),
            step("machine-power-on", "db", "succeeded", 5381.7, 5381.2),
            step("machine-probe", "db", "succeeded", 5381.2, 5367.0, "tcp 10.77.2.11:5432 green"),
            step("machine-power-on", "web", "succeeded", 5367.0, 5366.6),
            step("machine-probe", "web", "succeeded", 5366.6, 5346, "http 10.77.2.12:80 green"),
        ],
        machines=[
            {
                "name": name,
                "state": "succeeded",
                "rpo_s": 0.0,
                "rto_s": rto,
                "checkpoint_id": f"cp-01J9004{name}",
                "probes": [probe(kind, target)],
                "address": address,
            }
            for name, rto, kind, target, address in (
                ("db", 24.4, "tcp", "10.77.2.11:5432", "10.77.2.11"),
                ("web", 49.1, "http", "http://10.77.2.12/", "10.77.2.12"),
            )
        ],
        cycles=[
            {
                "group_id": "grp-shop-db",
                "checkpoint_id": "cp-01J9004db",
                "stats": checkpoint(40, "db", 0, "incremental", MIB)["stats"],
            },
            {
                "group_id": "grp-shop-web",
                "checkpoint_id": "cp-01J9004web",
                "stats": checkpoint(40, "web", 0, "incremental", 65536)["stats"],
            },
        ],
    )


def seeded() -> Stand:
    """A control plane in the middle of a working day."""
    checkpoints = []
    for number in range(18, 0, -1):
        for name in ("web", "db"):
            mode, moved = ("full", 148 * MIB) if number == 1 else ("incremental", (number * 37 % 11 + 1) * MIB // 3)
            if (number, name) == (9, "db"):
                mode, moved = "verify", 6 * MIB
            more = {"pinned": True, "label": "before-upgrade"} if number == 14 else {}
            checkpoints.append(checkpoint(number, name, (18 - number) * 45 + 18, mode, moved, **more))
    checkpoints[0]["in_use_by"] = ["run-01J9DRILL"]
    drill = run(
        "run-01J9DRILL",
        steps=[
            step("lease points", None, "succeeded", 40, 39.7),
            step("network-create", None, "succeeded", 39.7, 38.8, "farshore-drill-01j9drll, isolated"),
            step("machine-create", "db", "succeeded", 38.8, 37),
            step("machine-create", "web", "succeeded", 38.8, 36.8),
            step("machine-power-on", "db", "succeeded", 36.8, 36.2),
            step("machine-probe", "db", "succeeded", 36.2, 22, "tcp 10.77.1.11:5432 green"),
            step("machine-power-on", "web", "succeeded", 22, 21.5),
            step("machine-probe", "web", "running", 21.5, None, "http http://10.77.1.12/: connection refused, try 9"),
            step("sweep", None, "pending", None, None),
        ],
        machines=[
            {
                "name": "db",
                "state": "succeeded",
                "rpo_s": 22.0,
                "rto_s": 18.0,
                "checkpoint_id": "cp-01J90018db",
                "probes": [probe("tcp", "10.77.1.11:5432")],
                "address": "10.77.1.11",
            },
            {
                "name": "web",
                "state": "running",
                "rpo_s": 22.0,
                "rto_s": None,
                "checkpoint_id": "cp-01J90018web",
                "probes": [],
                "address": "10.77.1.12",
            },
        ],
        progress={"done_bytes": 0, "total_bytes": 0, "note": "waiting for web: http://10.77.1.12/"},
    )
    failed = run(
        "run-01J9FAILED",
        kind="replicate",
        plan="ledger",
        state="failed",
        created_at=iso(2000),
        started_at=iso(2000),
        ended_at=iso(1988),
        error={
            "status": 507,
            "code": "no-space",
            "detail": "the pool /var/lib/farshore-lab/beta/pool is full: 12.0 MiB free, 96.0 MiB needed",
            "hint": "Make room, or lower retention.count of the plan.",
            "field": None,
            "evidence": {},
        },
        steps=[step("cycle", "ledger", "failed", 2000, 1988, "the pool is full")],
    )
    return Stand(
        sites=[
            site("alpha"),
            site(
                "beta",
                machine_count=0,
                pool={"path": "/var/lib/farshore-lab/beta/pool", "capacity_bytes": 200 << 30, "free_bytes": 22 << 30},
            ),
            site("gamma", state="offline", machine_count=1, nodes=["gamma-1"], description="third site"),
        ],
        nodes=[
            node("alpha-1", "alpha"),
            node("beta-1", "beta"),
            node("gamma-1", "gamma", state="offline", last_seen=iso(4000)),
        ],
        plans=[
            plan(
                "shop",
                definition={
                    "name": "shop",
                    "description": "the web shop with its database",
                    "source_site": "alpha",
                    "target_site": "beta",
                },
            ),
            plan(
                "ledger",
                rpo_s=1312.0,
                rpo_target_s=900.0,
                conditions=["rpo-exceeded"],
                machines=[
                    {
                        "name": "ledger",
                        "machine_id": "id-ledger",
                        "state": "protected",
                        "rpo_s": 1312.0,
                        "newest_checkpoint": None,
                    }
                ],
                last_error={
                    "code": "no-space",
                    "message": "the pool /var/lib/farshore-lab/beta/pool is full: 12.0 MiB free, 96.0 MiB needed",
                },
            ),
        ],
        machines=[machine("db"), machine("web", disks=[{"disk_id": "vda", "size_bytes": 256 * MIB}])],
        checkpoints=checkpoints,
        runs=[
            drill,
            run(
                "run-01J9REPL",
                kind="replicate",
                started_at=iso(8),
                created_at=iso(8),
                progress={"done_bytes": 61 * MIB, "total_bytes": 148 * MIB, "note": "db/vdb"},
            ),
            failed,
            failover_run("run-01J9FAILOVER"),
        ],
    )


def build(stand: Stand) -> FastAPI:
    """Return the application: the documented routes over ``stand``, with the pages mounted."""
    app = FastAPI()

    def refusal(status: int, **fields: Any) -> JSONResponse:
        return JSONResponse({"status": status} | fields, status_code=status)

    @app.middleware("http")
    async def authorise(request: Request, call_next: Any) -> Any:
        if request.url.path.startswith("/api/"):
            role = TOKENS.get(request.headers.get("authorization", "").removeprefix("Bearer "))
            if role is None:
                return refusal(
                    401, code="token-invalid", detail="the token is not valid", hint="Look at FARSHORE_TOKEN."
                )
            request.state.role = role
        return await call_next(request)

    def listed(items: list[dict[str, Any]], request: Request) -> dict[str, Any]:
        limit = int(request.query_params.get("limit", 100))
        wanted = request.query_params.get("plan")
        return {"items": [item for item in items if wanted in {None, item.get("plan")}][:limit]}

    @app.get("/api/v1/whoami")
    async def whoami(request: Request) -> Any:
        return {"token_id": "a1b2", "name": f"the-{request.state.role}", "role": request.state.role}

    @app.get("/api/v1/{kind}")
    async def items(kind: str, request: Request) -> Any:
        return listed(getattr(stand, kind.replace("-", "_")), request)

    @app.get("/api/v1/plans/{name}")
    async def one_plan(name: str) -> Any:
        found = next((each for each in stand.plans if each["name"] == name), None)
        return found or refusal(404, code="not-found", detail=f"no plan is called {name!r}", hint="There is: shop.")

    @app.get("/api/v1/plans/{name}/preflight")
    async def preflight(name: str) -> Any:
        return {"plan": name, "at": iso(0), **stand.preflight}

    @app.get("/api/v1/runs/{run_id}")
    async def one_run(run_id: str) -> Any:
        found = next((each for each in stand.runs if each["run_id"] == run_id), None)
        return found or refusal(404, code="not-found", detail=f"no run is called {run_id!r}")

    @app.post("/api/v1/{subject:path}:{verb}", status_code=202)
    async def act(
        subject: str,  # noqa: ARG001 - part of the path
        verb: str,
        request: Request,
    ) -> Any:
        stand.posts.append((request.url.path, request.headers.get("idempotency-key", ""), await request.json()))
        if verb in stand.refuse:
            status, fields = stand.refuse[verb]
            return refusal(status, **fields)
        return {"run": stand.runs[0], "changed": True}

    mount(app)
    return app
