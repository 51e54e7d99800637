"""Recovering with the settings that a plan had when the checkpoint was made, not with those that it has now. Pure.

Of the checkpoint's own plan are taken: what machines get at the target, their probes, what they depend on, the boot
groups and the networks. All else, such as policies, hooks and limits, is that of the plan as it is now. Machines that
have joined since keep their settings of now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from farshore.errors import Permanent
from farshore.model.plan import Plan
from farshore.recovery.preview import Choice

#: Of a machine.
_MACHINE: Final = ("recovery", "probes", "depends_on")


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that is not as it is now, such as ``machines.db.recovery.cpus``."""

    key: str
    current: Any
    captured: Any


def effective(plan: Plan, choices: Sequence[Choice]) -> Plan:
    """Return the plan to recover with.

    Raises:
        Permanent: a checkpoint carries no settings, or some that lead elsewhere or do not hold together any more.
    """
    if not choices:
        return plan
    captured = {choice.name: _settings(choice) for choice in choices}
    newest = max(choices, key=lambda choice: choice.manifest.taken_at)
    whole = captured[newest.name]
    for key in ("source_site", "target_site"):
        if whole.get(key) != getattr(plan, key):
            raise Permanent(
                f"the plan of checkpoint {newest.manifest.checkpoint_id} had {key} {whole.get(key)!r}, not"
                f" {getattr(plan, key)!r}",
                code="captured-elsewhere",
                field="recovery_settings",
                hint="Recover with recovery_settings: current.",
            )
    merged = plan.model_dump(mode="json")
    names = [machine.name for machine in plan.machines]
    for item in merged["machines"]:
        then = _machine(captured.get(item["name"], {}), item["name"])
        item |= {key: then[key] for key in _MACHINE if key in then}
        item["depends_on"] = [other for other in item["depends_on"] if other in names]
    merged["boot_groups"] = _groups(plan, whole, names)
    then_mapped = {mapping["source"] for mapping in whole.get("networks", ())}
    merged["networks"] = [
        *whole.get("networks", ()),
        *(mapping for mapping in merged["networks"] if mapping["source"] not in then_mapped),
    ]
    try:
        return Plan.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise Permanent(
            f"the settings of checkpoint {newest.manifest.checkpoint_id} do not fit the plan any more: {first['msg']}",
            code="captured-invalid",
            field="recovery_settings",
            hint="Recover with recovery_settings: current.",
        ) from error


def differences(current: Plan, captured: Plan) -> list[Difference]:
    """Return what is not as it is now, by key."""
    now, then = (_flat(_by_name(one.model_dump(mode="json"))) for one in (current, captured))
    return [
        Difference(key, now.get(key), then.get(key)) for key in sorted({*now, *then}) if now.get(key) != then.get(key)
    ]


def _settings(choice: Choice) -> dict[str, Any]:
    settings = choice.manifest.settings.get("plan")
    if not isinstance(settings, dict):
        raise Permanent(
            f"checkpoint {choice.manifest.checkpoint_id} carries no settings",
            code="captured-missing",
            field="recovery_settings",
            hint="Recover with recovery_settings: current.",
            machine=choice.name,
        )
    return settings


def _machine(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Iterable[Mapping[str, Any]] = settings.get("machines", ())
    return next((item for item in found if item["name"] == name), {})


def _groups(plan: Plan, then: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the boot groups of then, of machines that there are now; those that joined come in the groups of now."""
    groups = [
        {**group, "machines": kept}
        for group in then.get("boot_groups", ())
        if (kept := [name for name in group["machines"] if name in names])
    ]
    if not groups:
        return []
    placed = {name for group in groups for name in group["machines"]}
    called = {group["name"]: group for group in groups}
    for group in plan.groups():
        joined = [name for name in group.machines if name not in placed]
        if not joined:
            continue
        if group.name in called:
            called[group.name]["machines"] += joined
        else:
            groups.append({**group.model_dump(mode="json"), "machines": joined})
    return groups


def _by_name(plan: dict[str, Any]) -> dict[str, Any]:
    """Return a plan's JSON with its named lists as mappings, so that a moved entry is no difference."""
    for key, name in (("machines", "name"), ("networks", "source")):
        plan[key] = {item[name]: item for item in plan[key]}
    plan["boot_groups"] = [f"{item['name']}: {', '.join(item['machines'])}" for item in plan["boot_groups"]]
    return plan


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            key: leaf
            for name, item in value.items()
            for key, leaf in _flat(item, f"{path}.{name}" if path else name).items()
        }
    return {path: value}
