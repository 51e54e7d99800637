"""The evidence of a run as JUnit XML, which every CI system shows: steps and probes as test cases. Pure."""

from __future__ import annotations

import re
from typing import Any, Final
from xml.etree import ElementTree as ET

#: What XML 1.0 cannot hold.
_FORBIDDEN: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SKIPPED: Final = frozenset({"skipped", "cancelled"})


def junit(body: dict[str, Any]) -> str:
    """Return the report's ``body`` as JUnit XML.

    One suite for the run's own steps, one for each machine: its steps, its probes, and whether RPO and RTO were kept.
    A hook that failed without stopping the run is a failure here all the same.
    """
    run = body["run"]
    root = ET.Element("testsuites", name=_text(f"{run['kind']} of {run['plan']}"))
    own = _suite(root, f"{run['kind']} of {run['plan']}", run.get("started_at"))
    properties = ET.SubElement(own, "properties")
    for name in ("run_id", "plan", "plan_revision", "actor", "state"):
        ET.SubElement(properties, "property", name=name, value=_text(run.get(name, "")))
    prefix = f"farshore.{run['kind']}.{run['plan']}"
    for step in run["steps"]:
        if not step.get("machine"):
            _step(own, prefix, step)
    whole = ET.SubElement(own, "testcase", classname=_text(prefix), name="the run as a whole", time="0.000")
    if run["state"] != "succeeded":
        error = run.get("error") or {}
        _outcome(whole, run["state"], str(error.get("code", "")), str(error.get("message") or f"it is {run['state']}"))
    facts = run.get("facts") or {}
    if facts.get("isolation"):
        case = _case(own, prefix, "isolation", 0.0)
        if not facts["isolation"].get("proven"):
            _outcome(case, "failed", "not-isolated", str(facts["isolation"].get("reason") or "not proven"))
    if "remaining" in facts:
        case = _case(own, prefix, "nothing is left behind", 0.0)
        if facts["remaining"]:
            _outcome(case, "failed", "leftovers", ", ".join(map(str, facts["remaining"])))
    objectives = body.get("objectives") or {}
    for machine in run["machines"]:
        suite = _suite(root, machine["name"], run.get("started_at"))
        classname = f"{prefix}.{machine['name']}"
        for step in run["steps"]:
            if step.get("machine") == machine["name"]:
                _step(suite, classname, step)
        for probe in machine["probes"]:
            case = _case(suite, classname, f"probe {probe['type']} {probe['target']}", probe["seconds"])
            if not probe["green"]:
                _outcome(case, "failed", "probe-failed", probe.get("detail") or "not green", probe.get("evidence", ""))
        kept = (objectives.get("machines") or {}).get(machine["name"]) or {}
        for name in ("rpo", "rto"):
            if kept.get(name) is not None:
                case = _case(suite, classname, name.upper(), 0.0)
                if not kept[name]:
                    text = f"{machine[f'{name}_s']} s, wanted {objectives[f'{name}_s']} s"
                    _outcome(case, "failed", f"{name}-missed", text)
    for suite in [*root, root]:
        _count(suite)
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, name: str, began: str | None) -> ET.Element:
    suite = ET.SubElement(root, "testsuite", name=_text(name))
    if began:
        suite.set("timestamp", _text(began))
    return suite


def _case(suite: ET.Element, classname: str, name: str, seconds: float | None) -> ET.Element:
    return ET.SubElement(
        suite, "testcase", classname=_text(classname), name=_text(name), time=f"{float(seconds or 0.0):.3f}"
    )


def _step(suite: ET.Element, classname: str, step: dict[str, Any]) -> None:
    case = _case(suite, classname, step["name"], step.get("seconds"))
    error = step.get("error") or {}
    if step["state"] != "succeeded":
        _outcome(case, step["state"], str(error.get("code", "")), str(error.get("message") or step.get("detail") or ""))
    output = (step.get("evidence") or {}).get("output") or step.get("detail")
    if isinstance(output, str) and output:
        ET.SubElement(case, "system-out").text = _text(output)


def _outcome(case: ET.Element, state: str, code: str, message: str, seen: str = "") -> None:
    kind = "skipped" if state in _SKIPPED else "failure"
    found = ET.SubElement(case, kind, message=_text(message))
    if kind == "failure":
        found.set("type", _text(code or state))
    found.text = _text(seen)


def _count(suite: ET.Element) -> None:
    cases = list(suite.iter("testcase"))
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in cases):.3f}")


def _text(value: Any) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", str(value))
