"""Makes a plan a record, after holding it against the other plans and what the sites have."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network
from typing import Any, Final

import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from farshore.control import inventory, keeping
from farshore.control.direction import direction
from farshore.control.nearby import suggestion
from farshore.control.planning import bundles
from farshore.control.planning.source import Document, dotted
from farshore.control.runs import approving, ledger
from farshore.control.scheduling import untracks
from farshore.control.store.database import Transaction
from farshore.control.store.records import Cycle, Group, Node, Plan, PlanMachine, PlanRevision, Run, Site
from farshore.errors import Conflict, Invalid
from farshore.model.machine import Inventory, MachineFacts
from farshore.model.plan import Plan as Definition
from farshore.recovery import preview
from farshore.units import format_size

_MOVES: Final = (
    "A plan keeps its sites, until a failover of all its machines is committed and not replicated back yet: then it may"
    " name the site where they run as its source and any other as its target. Else make a new plan and remove this one."
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A plan as somebody wants it. ``source`` is the text as written, made from the definition if there was none.

    ``files`` is the bundle of its hooks, where they came with it.
    """

    definition: Definition
    source: str
    document: Document | None = None
    files: bytes | None = None

    @property
    def dumped(self) -> dict[str, Any]:
        """The definition as JSON."""
        return self.definition.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What applying a plan changes."""

    changed: bool
    before: dict[str, Any] | None
    after: dict[str, Any]
    machine_ids: dict[str, str | None]
    warnings: list[str] = field(default_factory=list)


def group_of(definition: Definition, machine: str) -> str:
    """Return the id of the consistency group that a machine of the plan belongs to.

    No other plan or machine has it: names hold no ``=``, which also is a plain character in file names and keys.
    """
    return f"grp-{definition.name}={machine}" if definition.consistency == "machine" else f"grp-{definition.name}"


def source_text(definition: dict[str, Any]) -> str:
    """Return YAML for a definition that came without text."""
    return yaml.safe_dump(definition, sort_keys=False, allow_unicode=True)


def outcome(session: Session, name: str, wanted: Wanted) -> Outcome:
    """Return what :func:`apply` would change, without changing anything.

    Raises:
        Invalid: ``field`` names what does not fit the sites; ``evidence`` has line and column of a text.
        Conflict: a machine belongs to another plan already, or the plan would move.
    """
    settled, missing = bundles.settle(session, wanted.definition, wanted.files)
    wanted = replace(wanted, definition=settled)
    definition = wanted.definition
    if definition.name != name:
        raise _wrong(
            wanted, ("name",), f"the plan is called {definition.name!r}, but was sent as {name!r}", "Use one name."
        )
    record = session.get(Plan, name)
    known = {site.name for site in session.scalars(select(Site))}
    for key in ("source_site", "target_site"):
        site = getattr(definition, key)
        if site not in known:
            raise _wrong(
                wanted,
                (key,),
                f"there is no site {site!r}",
                f"{suggestion(site, known)} Register it first: `farshore site add NAME`.",
                code="site-unknown",
            )
    if record is not None:
        before = Definition.model_validate(record.definition)
        if (before.source_site, before.target_site) != (definition.source_site, definition.target_site):
            ledger.refuse_kept_drill(session, name)
            if not _may_move(session, record, definition):
                raise Conflict(
                    f"plan {name!r} replicates from {before.source_site!r} to {before.target_site!r} and cannot move",
                    code="plan-cannot-move",
                    field="target_site" if before.source_site == definition.source_site else "source_site",
                    hint=_MOVES,
                )
        _refuse_while_recovering(session, record, before, definition)
    warnings: list[str] = []
    _check_files(wanted, missing, warnings)
    machine_ids = _resolve(session, wanted, record, warnings)
    _refuse_overlap(session, wanted, machine_ids)
    _check_networks(session, wanted, warnings)
    _check_pool(session, wanted, warnings)
    _check_seeds(session, wanted)
    _foresee_retention(session, record, definition, warnings)
    if (
        record is not None
        and record.approval is not None
        and approving.is_weaker(record.approval, wanted.dumped["approval"])
    ):
        warnings.append(_asks(record.approval))
    return Outcome(
        record is None or record.definition != wanted.dumped or record.source != wanted.source,
        record.definition if record else None,
        wanted.dumped,
        machine_ids,
        warnings,
    )


def apply(tx: Transaction, name: str, wanted: Wanted, actor: str) -> Outcome:
    """Record the plan; a changed definition becomes a new revision.

    Raises:
        Invalid, Conflict: as :func:`outcome`; nothing is changed then.
    """
    result = outcome(tx, name, wanted)
    if not result.changed:
        return result
    definition, now = wanted.definition, time.time()
    _require_files(wanted, result.after)
    if wanted.files is not None and result.after["bundle"] is not None:
        bundles.keep(tx, wanted.files, actor)
    record = tx.get(Plan, name)
    if record is None:
        record = Plan(
            name=name,
            revision=0,
            source="",
            definition={},
            activity="inactive",
            state="unprotected",
            active_site=definition.source_site,
            epoch=1,
            created_at=now,
            changed_at=now,
        )
        tx.add(record)
    elif record.epoch == 1:
        record.active_site = definition.source_site
    if record.definition != result.after:
        record.revision += 1
        tx.flush()
        tx.add(
            PlanRevision(
                plan=name,
                revision=record.revision,
                source=wanted.source,
                definition=result.after,
                created_at=now,
                actor=actor,
            )
        )
    record.source, record.definition, record.changed_at = wanted.source, result.after, now
    tx.flush()
    _members(tx, record, definition, result.machine_ids)
    asked = approving.settle(tx, record, actor)
    if asked is not None and asked.approval is not None:
        result.warnings[:] = [one for one in result.warnings if one != _asks(asked.approval)]
        result.warnings.append(_asks(asked.approval, f": `farshore run approve {asked.run_id}`"))
    tx.changed("plan", name)
    return result


def _asks(approval: dict[str, Any], how: str = "") -> str:
    who = "another person has" if approval["people"] == 1 else f"{approval['people']} others have"
    return f"the plan asks for less approval than before: that counts once {who} approved it{how}"


def _may_move(session: Session, record: Plan, definition: Definition) -> bool:
    """Say whether a plan may get other sites: before it protects anything, or from where a failover has brought it."""
    if record.activity == "inactive" and record.epoch == 1 and record.state == "unprotected":
        return True
    rows = session.scalars(select(PlanMachine).where(PlanMachine.plan == record.name)).all()
    return (
        record.state == "failed-over"
        and record.committed
        and definition.source_site == record.active_site
        and all(row.raised and row.state == "failed-over" for row in rows if row.activity != "inactive")
        and ledger.open_run(session, record.name, ledger.RECOVERIES) is None
    )


def _refuse_while_recovering(session: Session, record: Plan, before: Definition, after: Definition) -> None:
    """Refuse what would take the ground from under a drill or a failover."""
    running = session.scalars(
        select(Run).where(
            Run.plan == record.name,
            Run.state.in_(ledger.OPEN),
            Run.kind.in_(ledger.RECOVERIES),
        )
    ).first()
    gone = {machine.name for machine in before.machines} - {machine.name for machine in after.machines}
    new = [machine.name for machine in after.machines if machine.name not in {item.name for item in before.machines}]
    if new and record.active_site != before.source_site:
        raise Conflict(
            f"plan {record.name!r} is active at {record.active_site!r}; machine {new[0]!r} cannot join it there",
            code="plan-away",
            field="machines",
            hint=f"Fail back to {before.source_site!r} first, or give it a plan of its own.",
        )
    rows = session.scalars(select(PlanMachine).where(PlanMachine.plan == record.name)).all()
    moving = any(row.state in {"failing-over", "rolling-back"} for row in rows)
    if before.consistency != after.consistency and len({row.raised for row in rows if row.activity != "inactive"}) > 1:
        raise Conflict(
            f"some machines of plan {record.name!r} run at the other site: they cannot be copied in other groups now",
            code="partly-failed-over",
            field="consistency",
            hint="Fail the rest over, or roll back, before consistency is changed.",
        )
    if before != after and (
        moving or record.state in {"failing-over", "rolling-back"} or (running is not None and gone)
    ):
        what = f"{running.kind} {running.run_id} of" if running is not None else "the failover of"
        raise Conflict(
            f"{what} plan {record.name!r} has not ended",
            code="run-open",
            field="machines",
            hint=f"Wait for it: `farshore run watch {running.run_id}`."
            if running is not None
            else "Order the failover again.",
        )


def _members(tx: Transaction, record: Plan, definition: Definition, machine_ids: dict[str, str | None]) -> None:
    rows = {row.name: row for row in tx.scalars(select(PlanMachine).where(PlanMachine.plan == record.name))}
    wanted_groups = {group_of(definition, machine.name) for machine in definition.machines}
    for row in list(rows.values()):
        if row.name not in machine_ids or (record.epoch == 1 and row.site != definition.source_site):
            if row.activity != "inactive" and row.machine_id is not None:
                untrack(tx, record, row)
            tx.delete(rows.pop(row.name))
    tx.flush()
    groups = {row.group_id: row for row in tx.scalars(select(Group).where(Group.plan == record.name))}
    for group_id in wanted_groups - set(groups):
        tx.add(Group(group_id=group_id, plan=record.name, failures=0, not_before=0.0))
    for group_id in set(groups) - wanted_groups:
        for cycle in tx.scalars(select(Cycle).where(Cycle.group_id == group_id, Cycle.ended_at.is_(None))):
            cycle.cancel = True
        tx.delete(groups[group_id])
    for position, machine in enumerate(definition.machines):
        member = rows.get(machine.name)
        if member is None:
            member = PlanMachine(
                plan=record.name,
                name=machine.name,
                position=position,
                site=direction(record).source,
                group_id=group_of(definition, machine.name),
                activity=record.activity,
                state="seeding" if record.activity != "inactive" else "unprotected",
            )
            tx.add(member)
        member.position, member.group_id = position, group_of(definition, machine.name)
        member.machine_id = machine_ids[machine.name]
    tx.flush()


def untrack(tx: Transaction, record: Plan, row: PlanMachine) -> None:
    """Order the removal of every trace of ours from a machine at the source."""
    if row.machine_id is None:
        return
    untracks.order(tx, record.name, row.site, row.name, row.machine_id, record.epoch)


def _resolve(session: Session, wanted: Wanted, record: Plan | None, warnings: list[str]) -> dict[str, str | None]:
    """Return the ids of the plan's machines; None for all while the site has no inventory."""
    definition = wanted.definition
    site = session.get_one(Site, definition.source_site)
    earlier: dict[str, str | None] = {}
    if record is not None:
        rows = session.scalars(select(PlanMachine).where(PlanMachine.plan == record.name)).all()
        if record.epoch > 1:
            # Machines that were moved are known by their ids; at the site of another one their names say nothing.
            return {
                machine.name: next(row.machine_id for row in rows if row.name == machine.name)
                if any(row.name == machine.name for row in rows)
                else _only(inventory.find(inventory.machines(session, site.name), machine.name))
                for machine in definition.machines
            }
        earlier = {row.name: row.machine_id for row in rows if row.site == definition.source_site}
    if site.inventory_at is None:
        warnings.append(f"site {site.name!r} has sent no inventory yet: machines and networks were not checked")
        return {machine.name: earlier.get(machine.name) for machine in definition.machines}
    present = inventory.machines(session, site.name)
    ids: dict[str, str | None] = {}
    for index, machine in enumerate(definition.machines):
        matching = inventory.find(present, machine.name)
        if len(matching) == 1:
            ids[machine.name] = matching[0].machine_id
        elif len(matching) > 1:
            raise _wrong(
                wanted,
                ("machines", index, "name"),
                f"site {site.name!r} has {len(matching)} machines called {machine.name!r}",
                f"Write the id instead: {' or '.join(facts.machine_id for facts in matching)}.",
                code="machine-ambiguous",
            )
        elif earlier.get(machine.name):
            ids[machine.name] = earlier[machine.name]
            warnings.append(f"machine {machine.name!r} is not at site {site.name!r} any more")
        else:
            raise _wrong(
                wanted,
                ("machines", index, "name"),
                f"site {site.name!r} has no machine {machine.name!r}",
                suggestion(machine.name, [facts.name for facts in present], f" at {site.name}"),
                code="machine-unknown",
            )
        for other, other_id in list(ids.items())[:-1]:
            if other_id is not None and other_id == ids[machine.name]:
                raise _wrong(
                    wanted,
                    ("machines", index, "name"),
                    f"{machine.name!r} and {other!r} are the same machine {other_id}",
                    "Remove one of them.",
                )
    return ids


def _only(found: list[MachineFacts]) -> str | None:
    return found[0].machine_id if len(found) == 1 else None


def _refuse_overlap(session: Session, wanted: Wanted, machine_ids: dict[str, str | None]) -> None:
    definition = wanted.definition
    others = session.scalars(
        select(PlanMachine).where(PlanMachine.plan != definition.name, PlanMachine.site == definition.source_site)
    ).all()
    for index, machine in enumerate(definition.machines):
        machine_id = machine_ids[machine.name]
        for other in others:
            if other.name == machine.name or (machine_id is not None and other.machine_id == machine_id):
                raise Conflict(
                    f"machine {machine.name!r} of plan {definition.name!r} is in plan {other.plan!r} already",
                    code="machine-overlap",
                    field=f"machines[{index}].name",
                    hint=f"A machine belongs to one plan. Remove it from {other.plan!r} or from {definition.name!r}.",
                    machine=machine.name,
                    plans=[definition.name, other.plan],
                    **_where(wanted, ("machines", index, "name")),
                )


def _check_networks(session: Session, wanted: Wanted, warnings: list[str]) -> None:
    definition = wanted.definition
    source = inventory.at(session, definition.source_site)
    record = session.get(Plan, definition.name)
    if source is not None and (record is None or record.active_site == definition.source_site):
        members: list[MachineFacts] = []
        for machine in definition.machines:
            members += inventory.find(source.machines, machine.name)[:1]
        used = {nic.network: facts.name for facts in members for nic in facts.nics}
        for index, mapping in enumerate(definition.networks):
            if mapping.source not in used:
                raise _wrong(
                    wanted,
                    ("networks", index, "source"),
                    f"no machine of the plan is plugged into a network {mapping.source!r}",
                    suggestion(mapping.source, used, " of these machines"),
                    code="network-unknown",
                )
        for network, machine_name in used.items():
            if network not in {mapping.source for mapping in definition.networks}:
                raise _wrong(
                    wanted,
                    ("networks",),
                    f"machine {machine_name!r} is plugged into {network!r}, which is not mapped",
                    f"Add an entry with `source: {network}`, a drill subnet and a failover network.",
                    code="network-unmapped",
                )
    target = inventory.at(session, definition.target_site)
    if target is None:
        warnings.append(f"site {definition.target_site!r} has sent no inventory yet: its networks were not checked")
        return
    names = {network.name for network in target.networks}
    for index, mapping in enumerate(definition.networks):
        _require_network(wanted, ("networks", index, "failover"), mapping.failover, names, definition.target_site)
    for index, machine in enumerate(definition.machines):
        for network, purposes in machine.recovery.networks.items():
            for purpose, plug in purposes.items():
                if plug.network is not None and purpose != "failback":
                    where = ("machines", index, "recovery", "networks", network, purpose, "network")
                    _require_network(wanted, where, plug.network, names, definition.target_site)
    warnings += drills_beside(definition, target)
    _check_addresses(wanted, source, target)


def drills_beside(definition: Definition, target: Inventory) -> list[str]:
    """Return a warning for each drill network that the site could not have beside one that it has."""
    if not target.one_address_space:
        return []
    there = {
        network.name: network.subnet for network in target.networks if network.subnet and ":" not in network.subnet
    }
    return [
        f"a drill cannot make {mapping.drill.subnet} for {mapping.source!r}: site {definition.target_site!r} has"
        f" {subnet} in its network {name!r}; choose another subnet"
        for mapping in definition.networks
        for name, subnet in there.items()
        if mapping.drill.subnet.overlaps(IPv4Network(subnet, strict=False))
    ]


def _require_network(wanted: Wanted, where: tuple[str | int, ...], name: str, names: set[str], site: str) -> None:
    if name not in names:
        raise _wrong(
            wanted,
            where,
            f"site {site!r} has no network {name!r}",
            suggestion(name, names, f" at {site}"),
            code="network-unknown",
        )


def _check_addresses(wanted: Wanted, source: Inventory | None, target: Inventory) -> None:
    """Refuse an address outside of the network that its interface will be plugged into."""
    definition = wanted.definition
    here = {network.name: network.subnet for network in source.networks} if source is not None else {}
    there = {network.name: network.subnet for network in target.networks}
    machines = source.machines if source is not None else ()
    for index, machine in enumerate(definition.machines):
        facts = next(iter(inventory.find(machines, machine.name)), None)
        for key, purpose, address, source_of in machine.recovery.chosen():
            if purpose == "drill":
                continue
            plugged = preview.may_get(definition, machine.name, facts, purpose, address, source_of)
            subnets = {(here if purpose == "failback" else there).get(network or "", "") for network in plugged}
            # A network that tells no subnet, or one of IPv6, may have anything beside it.
            if not subnets or any(not subnet or ":" in subnet or address in IPv4Network(subnet) for subnet in subnets):
                continue
            raise _wrong(
                wanted,
                ("machines", index, "recovery", *key.split(".")),
                f"{address} is outside of {' and '.join(sorted(subnets))}, where machine {machine.name!r} will be",
                "Choose an address of that network, or map the machine's network to another one.",
                code="address-outside-network",
            )


def _check_pool(session: Session, wanted: Wanted, warnings: list[str]) -> None:
    definition = wanted.definition
    if not any(definition.target_site == node.site for node in session.scalars(select(Node))):
        warnings.append(f"site {definition.target_site!r} has no node: nothing can be replicated to it")
    target = inventory.at(session, definition.target_site)
    present = inventory.machines(session, definition.source_site)
    need = sum(
        disk.size_bytes
        for machine in definition.machines
        for facts in inventory.find(present, machine.name)[:1]
        for disk in facts.disks
    )
    if target is not None and target.pool is not None and need > target.pool.free_bytes:
        warnings.append(
            f"the disks have {format_size(need)} together, the pool of site {definition.target_site!r} has"
            f" {format_size(target.pool.free_bytes)} free"
        )


def _check_seeds(session: Session, wanted: Wanted) -> None:
    """Refuse a seed of a disk that its machine does not have; whether the image is there, only its site can tell."""
    present = inventory.machines(session, wanted.definition.source_site)
    for index, machine in enumerate(wanted.definition.machines):
        for facts in inventory.find(present, machine.name)[:1]:
            disks = [disk.disk_id for disk in facts.disks]
            for disk_id in machine.seed:
                if disk_id not in disks:
                    raise _wrong(
                        wanted,
                        ("machines", index, "seed"),
                        f"machine {machine.name!r} has no disk {disk_id!r}",
                        suggestion(disk_id, disks, f" of {machine.name}"),
                        code="disk-unknown",
                    )


def _check_files(wanted: Wanted, missing: list[bundles.Missing], warnings: list[str]) -> None:
    """Refuse a bundle that lacks a file which the plan names; without one it is only said that one is needed."""
    if not missing:
        return
    path, file = missing[0]
    if wanted.files is not None:
        raise _wrong(
            wanted,
            path,
            f"there is no file {file!r} beside the plan",
            "Write it as a path from the folder of the plan's file.",
            code="hook-file-missing",
        )
    warnings.append(f"the files of the hooks were not sent ({len(missing)} named, such as {file})")


def _require_files(wanted: Wanted, after: dict[str, Any]) -> None:
    """Refuse a plan that names files which nobody has."""
    needed = bundles.needed(wanted.definition)
    if needed and after["bundle"] is None:
        raise Invalid(
            f"files: the plan names {needed[0]!r}, and the files of its hooks were not sent",
            code="hook-files-missing",
            field="files",
            hint="Apply it from its file: `farshore plan apply FILE`, or the module protection_plan with src.",
            files=needed[:20],
        )


def _foresee_retention(session: Session, record: Plan | None, after: Definition, warnings: list[str]) -> None:
    """Say which checkpoints other rules would take that the rules of now leave."""
    if record is None or keeping.rules_of(record) == after.retention:
        return
    for group_id in keeping.groups_of(session, record.name):
        goes = keeping.decision(session, record, group_id, after.retention).goes
        goes = [one for one in goes if one not in keeping.decision(session, record, group_id).goes]
        if goes:
            warnings.append(
                f"retention would take {len(goes)} checkpoints of group {group_id} after its next cycle:"
                f" {', '.join(goes[:5])}{' ...' if len(goes) > 5 else ''}"
            )


def _where(wanted: Wanted, path: tuple[str | int, ...]) -> dict[str, int]:
    mark = wanted.document.mark(path) if wanted.document else None
    return {"line": mark[0], "column": mark[1]} if mark else {}


def _wrong(wanted: Wanted, path: tuple[str | int, ...], message: str, hint: str, code: str = "plan-invalid") -> Invalid:
    where = _where(wanted, path)
    at = f" (line {where['line']}, column {where['column']})" if where else ""
    return Invalid(f"{dotted(path)}: {message}{at}", code=code, field=dotted(path), hint=hint, **where)
