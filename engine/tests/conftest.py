"""What several suites stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from doubles.aws import AwsDouble
    from farshore.testing.lab import Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The laboratory's two sites, without guests."""
    from farshore.testing.lab import Lab

    lab = Lab(tmp_path_factory.mktemp("lab"), Path(".cache/lab"))
    lab.up(sites_only=True)
    yield lab
    lab.down()


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsDouble]:
    """What stands for AWS, with its credentials in the environment."""
    from doubles.aws import AwsDouble

    with pytest.MonkeyPatch.context() as patch, AwsDouble(tmp_path_factory.mktemp("aws")) as started:
        for name, value in started.environment().items():
            patch.setenv(name, value)
        yield started
