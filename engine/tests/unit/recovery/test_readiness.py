"""Readiness: each thing that is wrong has a finding of its own, and nothing else has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from farshore.model.kit import Kit
from farshore.model.machine import ComputeLimits, DiskFacts, MachineFacts, NetworkFacts, NicFacts, PoolFacts, Quota
from farshore.model.plan import Plan
from farshore.recovery.readiness import (
    Facts,
    MachineState,
    NodeState,
    Rehearsal,
    SiteState,
    evaluate,
    score,
)
from hypothesis import given
from hypothesis import strategies as st

GIB = 1 << 30
DB = MachineFacts(
    machine_id="id-db",
    name="db",
    power="on",
    disks=(DiskFacts(disk_id="vda", size_bytes=GIB), DiskFacts(disk_id="vdb", size_bytes=GIB)),
    nics=(NicFacts(mac="52:54:00:00:00:01", network="lan"),),
)
PLAN: dict[str, Any] = {
    "name": "shop",
    "source_site": "alpha",
    "target_site": "beta",
    "rpo": "15m",
    "machines": [
        {
            "name": "db",
            "recovery": {"addresses": {"drill": "10.9.0.10", "failover": "10.8.0.10", "migration": "10.8.0.10"}},
            "probes": [{"type": "http"}],
        }
    ],
    "networks": [{"source": "lan", "drill": {"subnet": "10.9.0.0/24"}, "failover": "dmz"}],
}
BOTH = frozenset({"replication", "recovery"})


def good(**changes: Any) -> Facts:
    facts = Facts(
        plan=Plan.model_validate(PLAN),
        state="protected",
        purpose="failover",
        source=SiteState("alpha", (NodeState("alpha-1", True, BOTH, 86400.0 * 20),)),
        target=SiteState(
            "beta",
            (NodeState("beta-1", True, BOTH, 86400.0 * 20),),
            (NetworkFacts(name="dmz", subnet="10.8.0.0/24"),),
            PoolFacts(path="/pool", capacity_bytes=100 * GIB, free_bytes=50 * GIB, filesystem="ext4"),
        ),
        machines=(machine(),),
        drill=Rehearsal("run-1", 3600.0, "succeeded"),
        drilled_s=3600.0,
    )
    return replace(facts, **changes)


def machine(**changes: Any) -> MachineState:
    return replace(
        MachineState("db", True, 60.0, now=DB, captured=DB, copied=frozenset({"vda", "vdb"})),
        **changes,
    )


def beta(**changes: Any) -> Facts:
    return good(target=replace(good().target, **changes))


def with_machine(**changes: Any) -> Facts:
    return good(machines=(machine(**changes),))


def with_plan(edit: Callable[[dict[str, Any]], None]) -> Facts:
    import copy

    text = copy.deepcopy(PLAN)
    edit(text)
    return good(plan=Plan.model_validate(text))


def changed(**changes: Any) -> MachineFacts:
    return DB.model_copy(update=changes)


def full(free_bytes: int) -> PoolFacts:
    return PoolFacts(path="/pool", capacity_bytes=100 * GIB, free_bytes=free_bytes, filesystem="ext4")


def node(online: bool = True, roles: frozenset[str] = BOTH, certificate_s: float = 1e6) -> NodeState:
    return NodeState("beta-1", online, roles, certificate_s)


def kitted(**kit: Any) -> tuple[NodeState, ...]:
    return (replace(node(), kit=Kit(**kit)),)


def with_hook(hook: dict[str, Any], target: tuple[NodeState, ...], source: tuple[NodeState, ...] = ()) -> Facts:
    facts = with_plan(lambda text: text.update(hooks={"pre_failover": hook}, bundle="0" * 64))
    sites = {"target": replace(facts.target, nodes=target), "source": replace(facts.source, nodes=source)}
    return replace(facts, **{name: site for name, site in sites.items() if site.nodes})


TASKS = {"file": "hooks/a.yml", "secrets": ["array_key"]}
AWAY = NodeState("alpha-1", True, BOTH, 1e6, Kit(host="here"))
SECOND = NodeState("beta-2", True, BOTH)
SMALLER = (DB.disks[0], DiskFacts(disk_id="vdb", size_bytes=GIB // 2))

WRONG: dict[str, Facts] = {
    "site-no-node": beta(nodes=()),
    "site-offline": beta(nodes=(node(False),)),
    "role-missing": beta(nodes=(node(roles=frozenset({"replication"})),)),
    "certificate-expired": beta(nodes=(node(certificate_s=-1),)),
    "certificate-ends": beta(nodes=(node(certificate_s=86400),)),
    "node-offline": beta(nodes=(SECOND, node(False, roles=frozenset({"recovery"})))),
    "pool-on-one-node": beta(nodes=(node(), SECOND)),
    "inventory-missing": beta(networks=None),
    "network-missing": beta(networks=(NetworkFacts(name="lan"),)),
    "network-inactive": beta(networks=(NetworkFacts(name="dmz", subnet="10.8.0.0/24", active=False),)),
    "network-unmapped": with_plan(lambda text: text["networks"][0].update(source="other")),
    "address-outside": beta(networks=(NetworkFacts(name="dmz", subnet="10.7.0.0/24"),)),
    "quota-machines": beta(quota=Quota(machines=10, machines_used=10)),
    "quota-cpus": beta(quota=Quota(cpus=10, cpus_used=10)),
    "address-duplicate": good(taken={("failover", "10.8.0.10"): "'x' of plan 'other'"}),
    "address-in-use": beta(addresses={"10.8.0.10": "printer"}),
    "pool-too-small-for-drill": beta(pool=full(GIB // 100)),
    "pool-too-small-for-failover": beta(pool=full(GIB)),
    "machine-unprotected": with_machine(active=False),
    "no-checkpoint": with_machine(captured=None, copied=frozenset()),
    "rpo-exceeded": with_machine(rpo_s=1000.0),
    "checkpoint-suspect": with_machine(suspect_newest=True),
    "checkpoint-suspect-older": with_machine(suspect_older=2),
    "machine-gone": with_machine(now=None),
    "disk-untracked": with_machine(now=changed(disks=(DB.disks[0], DB.disks[1].model_copy(update={"tracked": False})))),
    "disk-unprotected": with_machine(copied=frozenset({"vda"})),
    "disk-resized": with_machine(now=changed(disks=SMALLER)),
    "disk-removed": with_machine(now=changed(disks=DB.disks[:1])),
    "machine-renamed": with_machine(now=changed(name="db2")),
    "machine-replugged": with_machine(now=changed(nics=())),
    "machine-resized": with_machine(now=changed(cpus=8)),
    "probe-missing": with_plan(lambda text: text["machines"][0].update(probes=[])),
    "drill-failed": good(drill=Rehearsal("run-2", 60.0, "failed")),
    "drill-never": good(drill=None, drilled_s=None),
    "drill-old": good(drilled_s=40 * 86400.0),
    "plan-unprotected": good(state="unprotected"),
    "plan-failing-over": good(state="failing-over"),
    "plan-not-reprotected": good(state="failed-over"),
    "old-primary-unfenced": good(unfenced=("db",)),
    "control-plane-superseded": good(superseded=True),
    "bundle-late": beta(bundle="late"),
    "bundle-missing": beta(bundle="missing"),
    "recovery-key-here": good(recovery_key_is_here=True),
    "hooks-not-playable": with_hook(TASKS, kitted(no_hooks="no user", secrets=("array_key",))),
    "secret-missing": with_hook(TASKS, kitted(secrets=("other",))),
    "secret-not-everywhere": replace(
        with_hook(TASKS, (*kitted(secrets=("array_key",)), replace(SECOND, kit=Kit()))),
        target=replace(
            good().target,
            nodes=(*kitted(secrets=("array_key",)), replace(SECOND, kit=Kit())),
            pool=full(50 * GIB).model_copy(update={"filesystem": "nfs4"}),
        ),
    ),
    "guest-tools-missing": beta(nodes=kitted(lacks=("ntfs-3g (package ntfs-3g)",))),
    "control-plane-shares-fate": good(source=replace(good().source, nodes=(AWAY,)), control_host="here"),
    "group-too-large": beta(limits=ComputeLimits(drafts=0)),
    "probe-blind-in-drill": beta(drill_probes=("console",)),
    "disk-too-large": beta(limits=ComputeLimits(disk_bytes=DB.disks[0].size_bytes - 1)),
    "instance-type-not-offered": replace(
        with_plan(lambda text: text["machines"][0].update(recovery={"instance_type": "t3.small"})),
        target=replace(good().target, limits=ComputeLimits(instance_types=("m6i.large",))),
    ),
}


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    found = evaluate(good())
    assert (found.ready, found.score, found.findings) == (True, 100, ())


def test_probes_that_see_something_in_a_drill_are_not_named() -> None:
    tasks = {"type": "ansible", "file": "look.yml"}

    def blind(*probes: dict[str, Any]) -> set[str]:
        facts = with_plan(lambda text: text["machines"][0].update(probes=list(probes)))
        facts = replace(facts, target=replace(facts.target, drill_probes=("console", "tcp", "http")))
        return {one.message for one in evaluate(facts).findings if one.code == "probe-blind-in-drill"}

    assert not blind({"type": "http"}, {"type": "tcp", "port": 22, "banner": "SSH"}, {**tasks, "on": "node"})
    [message] = blind({"type": "http"}, {"type": "guest_agent"}, {**tasks, "on": "machine"})
    assert "type ansible, guest_agent of" in message


@pytest.mark.parametrize("code", sorted(WRONG))
def test_what_is_wrong_is_named_and_nothing_else(code: str) -> None:
    found = evaluate(WRONG[code])
    also = {"address-outside"} if code == "inventory-missing" else set()
    codes = {finding.code for finding in found.findings} - also
    allowed = {"pool-too-small-for-failover"} if code == "pool-too-small-for-drill" else set()
    assert codes - allowed == {code}
    assert all(finding.remedy and finding.message and finding.subject for finding in found.findings)
    assert found.ready == all(finding.severity != "error" for finding in found.findings)
    assert found.score < 100 or all(finding.severity == "info" for finding in found.findings)


def test_secrets_count_where_the_hook_is_played() -> None:
    at_source = {**TASKS, "at": "source"}
    here = replace(AWAY, kit=Kit(secrets=("array_key",)))
    assert evaluate(with_hook(at_source, kitted(), (here,))).findings == ()
    found = evaluate(with_hook(at_source, kitted(secrets=("array_key",)), (AWAY,))).findings
    assert [(one.code, one.subject) for one in found] == [("secret-missing", "array_key")]
    assert "'alpha'" in found[0].message
    assert "hook pre_failover" in found[0].message


def test_what_probes_and_dns_name_is_looked_for_at_the_target() -> None:
    def edit(text: dict[str, Any]) -> None:
        text["machines"][0]["probes"] = [{"type": "ssh", "command": "true", "user": "root", "key": "db_key"}]
        text["dns"] = {"server": "ns1", "zone": "example.org", "key": "tsig"}

    facts = with_plan(edit)
    found = evaluate(replace(facts, target=replace(facts.target, nodes=kitted()))).findings
    assert {one.subject for one in found if one.code == "secret-missing"} == {"db_key", "tsig"}


def test_a_hook_of_the_other_direction_asks_for_nothing() -> None:
    facts = with_plan(lambda text: text.update(hooks={"pre_failback": TASKS}, bundle="0" * 64))
    assert evaluate(replace(facts, target=replace(facts.target, nodes=kitted(no_hooks="no user")))).findings == ()


def test_a_node_that_never_said_is_not_judged() -> None:
    assert evaluate(with_hook(TASKS, (node(),))).findings == ()


def test_a_control_plane_on_the_host_of_both_sites_is_no_finding_and_one_in_a_machine_of_the_source_is() -> None:
    assert evaluate(replace(beta(nodes=kitted(host="here")), control_host="here")).findings == ()
    both = replace(good(source=replace(good().source, nodes=(AWAY,))), control_host="here")
    both = replace(both, target=replace(both.target, nodes=kitted(host="here")))
    assert evaluate(both).findings == ()
    found = evaluate(good(control_machine="vcenter")).findings
    assert [one.code for one in found] == ["control-plane-shares-fate"]
    assert "'vcenter'" in found[0].message


def test_an_address_has_to_be_of_the_network_of_its_own_interface() -> None:
    def edit(text: dict[str, Any]) -> None:
        text["networks"].append({"source": "san", "drill": {"subnet": "10.5.0.0/24"}, "failover": "vault"})
        text["machines"][0]["recovery"] = {"networks": {"san": {"failover": {"address": "10.8.0.77"}}}}

    two = changed(nics=(*DB.nics, NicFacts(mac="52:54:00:00:00:02", network="san")))
    there = (NetworkFacts(name="dmz", subnet="10.8.0.0/24"), NetworkFacts(name="vault", subnet="10.7.0.0/24"))
    facts = replace(with_plan(edit), machines=(machine(now=two, captured=two),))
    found = evaluate(replace(facts, target=replace(facts.target, networks=there))).findings
    assert [(one.code, "10.7.0.0/24" in one.message) for one in found] == [("address-outside", True)]
    found = evaluate(replace(facts, target=replace(facts.target, networks=there[:1]))).findings
    assert [(one.code, one.subject) for one in found] == [("network-missing", "vault")]


def test_some_machines_without_an_address_are_told_of() -> None:
    facts = with_plan(lambda text: text["machines"].append({"name": "web", "probes": [{"type": "http"}]}))
    found = {finding.code: finding for finding in evaluate(facts).findings}
    assert found["address-missing"].subject == "web"


def test_on_the_way_home_the_source_s_networks_count() -> None:
    home = replace(good().target, networks=(NetworkFacts(name="lan"),), addresses={"10.8.0.10": "printer"})
    assert evaluate(good(purpose="failback", target=home)).findings == ()


def test_the_worst_comes_first_and_errors_weigh_most() -> None:
    found = evaluate(with_machine(suspect_newest=True, copied=frozenset()))
    assert [finding.severity for finding in found.findings] == ["error", "warning", "warning"]
    assert found.score == 100 - 30 - 8 - 2


@given(st.lists(st.sampled_from(sorted(WRONG)), max_size=30))
def test_more_findings_never_raise_the_score(codes: list[str]) -> None:
    findings = [finding for code in codes for finding in evaluate(WRONG[code]).findings]
    for number in range(len(findings)):
        assert 0 <= score(findings[: number + 1]) <= score(findings[:number]) <= 100
