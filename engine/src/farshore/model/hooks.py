"""Hooks: what a plan has done before and after a verb, as Ansible tasks or by whoever called for the run.

The files lie beside the plan. They travel as one *bundle*: a tar file, named by its SHA-256 digest, that belongs to
a revision of the plan.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from farshore.model.base import Duration, Model

Verb = Literal["drill", "failover", "failback", "migrate", "reprotect", "rollback"]
Moment = Literal["pre", "post", "always"]
Level = Literal["plan", "group", "machine"]
#: A moment of a verb, as plans write it.
HookName = Literal[
    "pre_drill",
    "post_drill",
    "pre_failover",
    "post_failover",
    "pre_failback",
    "post_failback",
    "pre_migrate",
    "post_migrate",
    "pre_reprotect",
    "post_reprotect",
    "pre_rollback",
    "post_rollback",
    "always_drill",
    "always_failover",
    "always_failback",
    "always_migrate",
    "always_reprotect",
    "always_rollback",
]

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
#: A file of the bundle. No part begins with a dot, and no character of it means anything to a shell or to Ansible.
BundlePath = Annotated[str, StringConstraints(pattern=rf"^{_PART}(?:/{_PART}){{0,15}}\.ya?ml$", max_length=400)]
#: The SHA-256 of a bundle.
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
#: The name of a variable in Ansible.
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,62}$")]
#: The name of a secret; it is the variable too that the tasks find it in.
SecretName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,62}$")]

#: Context is handed over in a variable of this name; nothing else may be called so.
CONTEXT = "farshore"
#: How long a run waits at a gate unless the plan says otherwise.
GATE_S = 86400.0


class Tasks(Model):
    """A file of Ansible tasks, and what it is given."""

    file: BundlePath = Field(description="file of Ansible tasks, relative to the folder of the plan's file")
    secrets: tuple[SecretName, ...] = Field((), description="secrets of the node that the tasks may see, and no others")
    vars: dict[Variable, Any] = Field({}, description="variables for the tasks")

    @field_validator("vars")
    @classmethod
    def _are_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name.startswith(CONTEXT):
                raise ValueError(f"{name}: names that begin with {CONTEXT!r} are taken; use another")
        return value


class Hook(Model):
    """What happens at one moment: a file of tasks, or ``hook: gate``, where the run waits until it is resumed."""

    hook: Literal["tasks", "gate"] = "tasks"
    file: BundlePath | None = Field(
        None, description="file of Ansible tasks, relative to the folder of the plan's file"
    )
    at: Literal["source", "target"] = Field(
        "target", description="the site whose recovery node runs it: that which is left, or that which takes over"
    )
    timeout: Duration = Field(
        600.0,
        gt=0,
        le=7 * 86400,
        description="it is killed after this long, with all it has begun; a gate (default 24h) is given up",
    )
    on_failure: Literal["stop", "continue"] = Field("stop", description="stop: what it belongs to fails with it")
    secrets: tuple[SecretName, ...] = ()
    vars: dict[Variable, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """Read ``gate`` and ``hooks/storage.yml`` as what they are short for."""
        if isinstance(value, str):
            value = {"hook": "gate"} if value == "gate" else {"file": value}
        if isinstance(value, dict) and value.get("hook") == "gate":
            return {"timeout": GATE_S, **value}
        return value

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if self.hook == "gate":
            if self.file or self.secrets or self.vars:
                raise ValueError("a gate has no file, secrets or vars: whoever called for the run does the work")
        elif self.file is None:
            raise ValueError("the hook names no file; write hooks/NAME.yml, or gate")
        else:
            Tasks(file=self.file, secrets=self.secrets, vars=self.vars)
        return self


def _stay_here(value: dict[HookName, Hook]) -> dict[HookName, Hook]:
    for moment, hook in value.items():
        if moment.endswith("_drill") and hook.at == "source":
            raise ValueError(f"{moment}: a drill leaves the source site alone; its hooks run at the target")
    return value


def _pass_on(value: dict[HookName, Hook]) -> dict[HookName, Hook]:
    for moment, hook in value.items():
        if moment.startswith("always_") and hook.hook == "gate":
            raise ValueError(f"{moment}: a run on its way to its end waits at no gate; name a file of tasks")
    return value


def _of_a_part(value: dict[HookName, Hook]) -> dict[HookName, Hook]:
    for moment in value:
        if moment.startswith("always_"):
            raise ValueError(f"{moment}: what is always done comes after the verb; write it under the plan's own hooks")
        if moment.endswith(("_reprotect", "_rollback")):
            raise ValueError(f"{moment}: it is called for the plan alone; write it under the plan's own hooks")
    return value


Hooks = Annotated[dict[HookName, Hook], AfterValidator(_stay_here), AfterValidator(_pass_on)]
#: Those of a boot group or a machine.
PartHooks = Annotated[dict[HookName, Hook], AfterValidator(_stay_here), AfterValidator(_of_a_part)]
