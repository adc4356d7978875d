"""What a colour means, wherever it is seen."""

from __future__ import annotations

from collections.abc import Mapping

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import dashboard

from exporter.catalogue import families

GOOD, BUSY, IDLE, WARN, BAD, GONE = "green", "blue", "#8e8e8e", "orange", "red", "#5a5a5a"

STATES = {
    **dict.fromkeys(("up", "ready", "loaded", "active", "connected", "served", "yes", "clear"), GOOD),
    **dict.fromkeys(
        ("provisioning", "loading", "downloading", "activating", "reloading", "connecting", "reconnecting"), BUSY
    ),
    **dict.fromkeys(("sleeping", "unloaded", "inactive", "deactivating"), IDLE),
    **dict.fromkeys(("suspect", "stalled", "held down"), WARN),
    **dict.fromkeys(("down", "offline", "failed", "disconnected", "not served", "no"), BAD),
    **dict.fromkeys(("unknown", "not_found"), GONE),
}
"""The colour of each state, of whatever it is the state."""

SEVERITIES = {"critical": BAD, "warning": WARN}

PERCENTILES = {0.5: "super-light-purple", 0.95: "purple", 0.99: "dark-purple"}
"""Percentiles are purple and nothing else is: the darker, the further out in the tail."""

PARTS = {
    "gateway": "yellow",
    "queue": "orange",
    "provider": "blue",
    "prefill": "light-blue",
    "decode": "green",
}
"""Where a request's time goes."""

IN, OUT = "blue", "green"
LIMIT = "dark-red"
TODAY, YESTERDAY = "blue", "#8e8e8e"
ESTIMATE = "light-green"

Steps = tuple[tuple[float, str], ...]
"""Colours from a value upwards; below the first it is the colour that `thresholds` is given as the base."""

RATIO_GOOD: Steps = ((0.99, WARN), (0.999, GOOD))
"""Shares that should be 1, as availability."""
RATIO_FULL: Steps = ((0.8, WARN), (0.95, BAD))
"""Shares that should not reach 1, as memory in use."""
ANY_BAD: Steps = ((1, BAD),)
"""Counts that should be 0."""


def thresholds(base: str, steps: Steps = ()) -> build.ThresholdsConfig:
    """`base` from minus infinity, then each step's colour from its value on."""
    made = [dashboard.Threshold(None, base), *(dashboard.Threshold(value, colour) for value, colour in steps)]
    return build.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(made)


def mapped(words: Mapping[str, str]) -> list[dashboard.ValueMapping]:
    """Mappings that show values as the words of states, in their colours: {"1": "up", "0": "down"}."""
    return [
        dashboard.ValueMap(
            {
                value: dashboard.ValueMappingResult(text=word.replace("_", " "), color=STATES[word], index=place)
                for place, (value, word) in enumerate(words.items())
            }
        )
    ]


def severities() -> list[dashboard.ValueMapping]:
    """Mappings that show severities in their colours."""
    found = {word: dashboard.ValueMappingResult(text=word, color=colour) for word, colour in SEVERITIES.items()}
    return [dashboard.ValueMap(found)]


def codes(family: str) -> dict[str, int]:
    """A number for each state that the catalogue declares of a family, from 1 on."""
    return {state: code for code, state in enumerate(families()[family].closed["state"], 1)}


def named(family: str) -> dict[str, str]:
    """The states by their numbers, as text."""
    return {str(code): word for word, code in codes(family).items()}
