"""Mistakes of users: each message names what was given, what is expected, and the next step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.wrong_uses import data_cases, use_cases
from tests.wrong_uses.case import WrongUse

TABLES = {
    "data": data_cases.CASES,
    "environments": use_cases.ENVIRONMENTS,
    "evaluation": use_cases.EVALUATION,
    "networks": use_cases.NETWORKS,
    "losses": use_cases.LOSSES,
    "training": use_cases.TRAINING,
}
ROWS = [
    pytest.param(case, id=f"{subject}: {case.name}")
    for subject, cases in TABLES.items()
    for case in cases
]


def test_the_tables_are_long_enough() -> None:
    assert len(ROWS) >= 60
    assert len({row.id for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("case", ROWS)
def test_the_message_tells_enough(case: WrongUse, tmp_path: Path) -> None:
    with pytest.raises(case.error) as raised:
        case.use(tmp_path)
    message = str(raised.value)
    assert case.given in message
    assert case.expected in message
    assert case.next_step in message
    assert case.given and case.expected and case.next_step
    # As it was written: KeyError would print the escaped source of its message.
    assert "\\'" not in message
