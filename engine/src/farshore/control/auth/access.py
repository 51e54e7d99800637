"""The one table of who may do what. A route that is not in it does not exist for anybody."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI, Request

from farshore.control.auth.identity import Identity, identify
from farshore.errors import Forbidden

#: Least role by (method, path). ``anonymous``: no credential is looked at.
API_ROLES: Final[dict[tuple[str, str], str]] = {
    ("GET", "/api/v1/health"): "anonymous",
    ("GET", "/api/v1/whoami"): "viewer",
    ("GET", "/api/v1/openapi.json"): "viewer",
    ("GET", "/api/v1/events"): "viewer",
    ("GET", "/api/v1/sites"): "viewer",
    ("GET", "/api/v1/sites/{name}"): "viewer",
    ("PUT", "/api/v1/sites/{name}"): "admin",
    ("POST", "/api/v1/sites/{name}:preview"): "viewer",
    ("DELETE", "/api/v1/sites/{name}"): "admin",
    ("POST", "/api/v1/sites/{name}:check"): "operator",
    ("POST", "/api/v1/sites/{name}:refresh"): "operator",
    ("POST", "/api/v1/sites/{name}:catalog-check"): "operator",
    ("GET", "/api/v1/catalog"): "viewer",
    ("GET", "/api/v1/site-links"): "viewer",
    ("GET", "/api/v1/site-links/{source_site}/{target_site}"): "viewer",
    ("PUT", "/api/v1/site-links/{source_site}/{target_site}"): "admin",
    ("POST", "/api/v1/site-links/{source_site}/{target_site}:preview"): "viewer",
    ("DELETE", "/api/v1/site-links/{source_site}/{target_site}"): "admin",
    ("GET", "/api/v1/nodes"): "viewer",
    ("GET", "/api/v1/nodes/{name}"): "viewer",
    ("PUT", "/api/v1/nodes/{name}"): "admin",
    ("POST", "/api/v1/nodes/{name}:preview"): "viewer",
    ("POST", "/api/v1/nodes/{name}:token"): "admin",
    ("DELETE", "/api/v1/nodes/{name}"): "admin",
    ("GET", "/api/v1/machines"): "viewer",
    ("GET", "/api/v1/machines/{machine_id}"): "viewer",
    ("GET", "/api/v1/plans"): "viewer",
    ("GET", "/api/v1/plans/{name}"): "viewer",
    ("PUT", "/api/v1/plans/{name}"): "operator",
    ("POST", "/api/v1/plans/{name}:preview"): "viewer",
    ("DELETE", "/api/v1/plans/{name}"): "recovery-admin",
    ("POST", "/api/v1/plans/{name}:protect"): "operator",
    ("POST", "/api/v1/plans/{name}:protect-preview"): "viewer",
    ("GET", "/api/v1/plans/{name}/preflight"): "viewer",
    ("POST", "/api/v1/plans/{name}:replicate"): "operator",
    ("POST", "/api/v1/plans/{name}:replicate-preview"): "viewer",
    ("POST", "/api/v1/plans/{name}:drill"): "operator",
    ("POST", "/api/v1/plans/{name}:drill-preview"): "viewer",
    ("POST", "/api/v1/plans/{name}:drill-end"): "operator",
    ("POST", "/api/v1/plans/{name}:failover"): "recovery-admin",
    ("POST", "/api/v1/plans/{name}:failover-preview"): "viewer",
    ("POST", "/api/v1/plans/{name}:reprotect"): "recovery-admin",
    ("POST", "/api/v1/plans/{name}:reprotect-preview"): "viewer",
    ("POST", "/api/v1/plans/{name}:commit"): "recovery-admin",
    ("POST", "/api/v1/plans/{name}:rollback"): "recovery-admin",
    ("POST", "/api/v1/plans/{name}:rollback-preview"): "viewer",
    ("POST", "/api/v1/plans/{name}:migrate"): "recovery-admin",
    ("POST", "/api/v1/plans/{name}:migrate-preview"): "viewer",
    ("POST", "/api/v1/plans/{name}:retire"): "recovery-admin",
    ("POST", "/api/v1/plans/{name}:retire-preview"): "viewer",
    ("PUT", "/api/v1/plans/{name}/checkpoints/{label}"): "operator",
    ("GET", "/api/v1/checkpoints"): "viewer",
    ("GET", "/api/v1/checkpoints/{checkpoint_id}"): "viewer",
    ("PATCH", "/api/v1/checkpoints/{checkpoint_id}"): "operator",
    ("DELETE", "/api/v1/checkpoints/{checkpoint_id}"): "recovery-admin",
    ("POST", "/api/v1/checkpoints/{checkpoint_id}:scrub"): "operator",
    ("PUT", "/api/v1/checkpoints/{checkpoint_id}/hold"): "operator",
    ("DELETE", "/api/v1/checkpoints/{checkpoint_id}/hold"): "admin",
    ("POST", "/api/v1/checkpoints/{checkpoint_id}:clear"): "recovery-admin",
    ("POST", "/api/v1/plans/{name}:retention-preview"): "viewer",
    ("GET", "/api/v1/runs"): "viewer",
    ("GET", "/api/v1/runs/{run_id}"): "viewer",
    ("POST", "/api/v1/runs/{run_id}:cancel"): "operator",
    ("POST", "/api/v1/runs/{run_id}:pause"): "operator",
    ("POST", "/api/v1/runs/{run_id}:resume"): "operator",
    ("POST", "/api/v1/runs/{run_id}:approve"): "operator",
    ("POST", "/api/v1/runs/{run_id}:retry"): "operator",
    ("GET", "/api/v1/runs/{run_id}/report"): "viewer",
    ("GET", "/api/v1/runs/{run_id}/report.html"): "viewer",
    ("GET", "/api/v1/runs/{run_id}/report.xml"): "viewer",
    ("GET", "/api/v1/evidence-key"): "viewer",
    ("GET", "/api/v1/runs/{run_id}/machines/{machine}/screen"): "viewer",
    ("GET", "/api/v1/runs/{run_id}/machines/{machine}/console"): "viewer",
    ("GET", "/api/v1/tokens"): "admin",
    ("POST", "/api/v1/tokens"): "admin",
    ("DELETE", "/api/v1/tokens/{token_id}"): "admin",
    ("GET", "/api/v1/audit"): "operator",
}

#: Routes of the node listener: ``node`` needs a certificate of ours.
NODE_ROLES: Final[dict[tuple[str, str], str]] = {
    ("GET", "/node/v1/ca"): "anonymous",
    ("POST", "/node/v1/enrol"): "anonymous",
    ("POST", "/node/v1/poll"): "node",
    ("POST", "/node/v1/tasks/{task_id}/progress"): "node",
    ("POST", "/node/v1/reports"): "node",
    ("POST", "/node/v1/renew"): "node",
    ("GET", "/node/v1/bundles/{digest}"): "node",
}

ANONYMOUS: Final = Identity("", "anonymous", "anonymous")


def authorise(request: Request) -> Identity:
    """Let a request pass if the table gives its route to the caller's role. A dependency of every route.

    Raises:
        Unauthenticated: no valid token.
        Forbidden: the role is too small, or the route is in no table.
    """
    path = request.scope["route"].path
    least = API_ROLES.get((request.method, path))
    if least == "anonymous":
        return ANONYMOUS
    identity = identify(request)
    if least is None or not identity.may(least):
        raise Forbidden(
            f"{request.method} {path} needs the role {least or 'of nobody'}; token {identity.name!r} has"
            f" {identity.role}",
            code="role-too-small",
            hint="Use a token with that role.",
            needs=least,
            has=identity.role,
        )
    return identity


def routes(app: FastAPI, prefix: str) -> set[tuple[str, str]]:
    """Return the (method, path) pairs under ``prefix`` that an application has."""
    return {
        (method.upper(), path)
        for path, operations in app.openapi()["paths"].items()
        if path.startswith(prefix)
        for method in operations
    }
