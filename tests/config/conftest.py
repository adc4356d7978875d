"""Targets as a source would configure them, and an environment, for every test of the configuration."""

from collections.abc import Mapping
from typing import Literal

import pytest
from pydantic import Field

from exporter.config.model import TargetConfig
from exporter.config.secret import WithKey


class Gateway(WithKey):
    """A gateway that wants a key."""

    source: Literal["litellm"]
    endpoint: str = Field(default="/metrics", description="Path of the metrics.")


@pytest.fixture
def kinds() -> Mapping[str, type[TargetConfig]]:
    return {"litellm": Gateway}
