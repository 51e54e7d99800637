import copy

import pytest
from farshore.model.plan import Plan
from pydantic import ValidationError

GOOD = {
    "name": "shop",
    "source_site": "alpha",
    "target_site": "beta",
    "rpo": "15m",
    "machines": [
        {"name": "db", "probes": [{"type": "http", "port": 8080, "path": "/status", "contains": "ok"}]},
        {"name": "web", "depends_on": ["db"], "recovery": {"addresses": {"drill": "10.77.9.12"}}},
    ],
    "boot_groups": [{"name": "data", "machines": ["db"]}, {"name": "front", "machines": ["web"]}],
    "networks": [{"source": "app", "drill": {"subnet": "10.77.9.0/24"}, "failover": "recovery"}],
}


def changed(**changes):
    plan = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = plan
        for parent in parents:
            place = place[int(parent)] if parent.isdigit() else place[parent]
        place[last] = value
    return plan


def test_good_plan_is_read_with_units():
    plan = Plan.model_validate(GOOD)
    assert plan.rpo == 900
    assert [group.name for group in plan.groups()] == ["data", "front"]
    assert plan.machine("web").depends_on == ("db",)
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


def test_without_boot_groups_all_are_one():
    plan = Plan.model_validate(changed(boot_groups=[]))
    assert [group.machines for group in plan.groups()] == [("db", "web")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rpo": 0}, "RPO of less than 10 seconds"),
        ({"rpo": "soon"}, "no duration"),
        ({"target_site": "alpha"}, "source site too"),
        ({"machines__0__depends_on": ["web"]}, "wait for each other: db → web → db"),
        ({"machines__1__depends_on": ["web"]}, "wait for each other: web → web"),
        ({"machines__1__depends_on": ["cache"]}, r"machines\[1\].depends_on: 'cache' is no machine"),
        ({"machines__1__name": "db", "machines__1__depends_on": []}, r"machines\[1\].name: 'db' is listed twice"),
        ({"boot_groups__1__machines": ["db"]}, "in group 'data' already"),
        ({"boot_groups__1__machines": ["mail"]}, "'mail' is no machine of this plan"),
        ({"boot_groups": [{"name": "data", "machines": ["db"]}]}, "web is in no group"),
        (
            {"boot_groups": [{"name": "a", "machines": ["web"]}, {"name": "b", "machines": ["db"]}]},
            "boots in a later group",
        ),
        ({"networks": [GOOD["networks"][0], GOOD["networks"][0]]}, "mapped twice"),
        ({"machines__0__probes": [{"type": "tcp", "port": 22}]}, "banner"),
        ({"machines__0__probes": [{"type": "ping"}]}, "ping"),
        ({"machines": []}, "at least 1"),
        (
            {"machines__0__recovery": {"addresses": {"drill": "10.200.0.1"}}},
            r"machines\[0\].recovery.addresses.drill: 10.200.0.1 is in no drill subnet",
        ),
        (
            {"machines__0__recovery": {"addresses": {"drill": "10.77.9.12"}}},
            r"machines\[1\].recovery.addresses.drill: 10.77.9.12 is the address of 'db' already",
        ),
        ({"machines__0__recovery": {"addresses": {"drill": "10.77.9.1"}}}, "the hypervisor's own in 10.77.9.0/24"),
        ({"machines__0__recovery": {"addresses": {"drill": "10.77.9.255"}}}, "no host's address"),
        (
            {
                "networks": [
                    GOOD["networks"][0],
                    {**GOOD["networks"][0], "source": "san", "drill": {"subnet": "10.77.0.0/16"}},
                ]
            },
            r"networks\[1\].drill.subnet: 10.77.0.0/16 overlaps with that of 'app'",
        ),
        (
            {"machines__0__recovery": {"networks": {"san": {"failover": {"network": "vault"}}}}},
            r"machines\[0\].recovery.networks.san: the plan maps no network 'san'",
        ),
        (
            {"machines__0__recovery": {"networks": {"app": {"drill": {"network": "vault"}}}}},
            r"networks.app.drill.network: a drill makes its own",
        ),
        (
            {"machines__0__recovery": {"networks": {"app": {"drill": {"address": "10.200.0.1"}}}}},
            r"networks.app.drill.address: 10.200.0.1 is in no drill subnet of 'app'",
        ),
        (
            {"machines__0__recovery": {"networks": {"app": {"drill": {"address": "10.77.9.12"}}}}},
            r"machines\[1\].recovery.addresses.drill: 10.77.9.12 is the address of 'db' already",
        ),
        ({"machines__0__recovery": {"disks": {"vda": {"bus": "nvme"}}}}, "bus"),
        ({"machines__0__recovery": {"firmware": "coreboot"}}, "firmware"),
        ({"drill": {"schedule": "at tea time"}}, "at tea time"),
        ({"machines__0__recovery": {"addresses": {"drill": "127.0.0.1"}}}, "loopback"),
        ({"machines__0__recovery": {"addresses": {"failover": "127.0.0.1"}}}, "loopback"),
        ({"machines__0__recovery": {"addresses": {"failover": "169.254.169.254"}}}, "link-local"),
        ({"machines__1__recovery": {"addresses": {"failover": "224.0.0.1"}}}, r"machines\[1\].*multicast"),
        ({"name": "../etc"}, "pattern"),
        ({"colour": "blue"}, "Extra inputs"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(ValidationError, match=message):
        Plan.model_validate(changed(**changes))
