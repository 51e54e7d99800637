import json

import pytest
from farshore import errors


@pytest.mark.parametrize("cls", [errors.Retry, errors.Fenced, errors.Corruption, errors.NoSpace, errors.Invalid])
def test_duty_survives_the_wire(cls):
    error = cls("pool beta is full", hint="Add space.", field="pool", free_bytes=12)
    again = errors.from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(again) is cls
    assert (again.message, again.code, again.hint, again.field) == (error.message, error.code, error.hint, error.field)
    assert again.evidence == {"free_bytes": 12}


def test_unknown_duty_is_permanent_so_that_nobody_retries_it_blindly():
    again = errors.from_dict({"duty": "FromTheFuture", "code": "new-thing", "message": "m"})
    assert type(again) is errors.Permanent
    assert again.code == "new-thing"


def test_evidence_of_a_peer_cannot_replace_the_fields():
    again = errors.from_dict({"duty": "Retry", "message": "m", "evidence": {"code": "x", "hint": "y", "n": 1}})
    assert again.code == "try-again"
    assert again.evidence == {"n": 1}


@pytest.mark.parametrize(
    ("data", "evidence"),
    [
        ({"evidence": {"message": "x", "self": 1, "n": 1}}, {"n": 1}),
        ({"evidence": "text"}, {}),
        ({"evidence": ["a", "b"], "code": 7, "field": 8, "hint": None}, {}),
        ({"evidence": None, "code": "", "field": ""}, {}),
    ],
)
def test_whatever_a_peer_sends_becomes_an_error(data, evidence):
    again = errors.from_dict({"duty": "Retry", "message": "m", **data})
    assert type(again) is errors.Retry
    assert again.evidence == evidence
    assert isinstance(again.code, str)
    assert again.code
    assert again.field is None or isinstance(again.field, str)


def test_text_names_code_and_next_step():
    assert str(errors.NotFound("no plan 'x'", hint="List them with: farshore plan list")) == (
        "no plan 'x' [not-found] List them with: farshore plan list"
    )
