"""Names of recovered machines: entered in DNS once a machine is green. A drill enters none."""

from __future__ import annotations

from farshore.control import tasks
from farshore.control.runs import ledger, story
from farshore.control.runs.story import Scene
from farshore.control.store.records import RunMachine
from farshore.model.guest import DnsRecord, DnsUpdateParams, DnsUpdateResult
from farshore.model.plan import Purpose

STEP = "dns"


def update(scene: Scene, machine: RunMachine, purpose: Purpose, epoch: int) -> bool:
    """Enter a machine's names; False while that goes on. A machine that runs is not failed by a name server."""
    dns = scene.definition.dns
    names = scene.definition.machine(machine.name).recovery.dns
    if purpose == "drill" or dns is None or not names:
        return True
    if machine.address is None:
        ledger.done(scene.tx, scene.run.run_id, STEP, "not entered: the plan names no address for it", machine.name)
        return True
    params = DnsUpdateParams(
        dns=dns, records=tuple(DnsRecord(name=name, address=machine.address) for name in names), epoch=epoch
    )
    task = story.order(scene, STEP, "dns-update", scene.site(), params, machine=machine.name)
    if task is None:
        return False
    if task.state != "succeeded":
        failed = {**scene.run.facts.get("dns", {}), machine.name: tasks.failure(task).to_dict()}
        ledger.note(scene.tx, scene.run, dns=failed)
        return True
    result = DnsUpdateResult.model_validate(task.result)
    row = ledger.begin(scene.tx, scene.run.run_id, STEP, machine.name)
    row.evidence = result.model_dump(mode="json")
    said = [*result.updated, *(f"{found.message} [{found.code}]" for found in result.findings)]
    story.detail(scene, STEP, "; ".join(said)[: ledger.LONGEST_DETAIL], machine.name)
    return True
