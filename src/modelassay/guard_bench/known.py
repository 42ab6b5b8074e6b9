"""Known suites: public benchmarks by a short name, each with where its rows are on the Hub.

A suite is part of one data set: a configuration, a split, and the side of the prompts in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["harmful", "benign"]


@dataclass(frozen=True)
class KnownSuite:
    """A part of a public data set that a guard is measured on."""

    name: str
    where: str
    """The data set's id on the Hub."""
    config: str | None
    split: str
    side: Side
    """Of the prompts that are asked."""
    columns: tuple[str, ...]
    """Those that are read."""
    holds: Side | None = None
    """The side that all its prompts are on; None where rows or splits tell."""
    gated: bool = False
    """Whether its terms must be accepted on its page first."""
    aliases: tuple[str, ...] = ()


JAILBREAKBENCH, WILDGUARD = "JailbreakBench/JBB-Behaviors", "allenai/wildguardmix"
_XSTEST = ("prompt", "type", "label")
_WILDGUARD = ("prompt", "prompt_harm_label", "subcategory")

KNOWN_SUITES = (
    KnownSuite(
        "jailbreakbench",
        JAILBREAKBENCH,
        "behaviors",
        "harmful",
        "harmful",
        ("Goal", "Category"),
        aliases=("behaviors",),
    ),
    KnownSuite(
        "jailbreakbench-benign",
        JAILBREAKBENCH,
        "behaviors",
        "benign",
        "benign",
        ("Goal", "Category"),
    ),
    KnownSuite(
        "jailbreakbench-judges",
        JAILBREAKBENCH,
        "judge_comparison",
        "test",
        "harmful",
        ("goal", "prompt", "human_majority"),
        aliases=("judge_comparison",),
    ),
    KnownSuite("xstest", "Paul/XSTest", None, "train", "benign", _XSTEST),
    KnownSuite("xstest-unsafe", "Paul/XSTest", None, "train", "harmful", _XSTEST),
    KnownSuite("wildguard", WILDGUARD, "wildguardtest", "test", "harmful", _WILDGUARD, gated=True),
    KnownSuite(
        "wildguard-benign", WILDGUARD, "wildguardtest", "test", "benign", _WILDGUARD, gated=True
    ),
    KnownSuite(
        "strongreject",
        "walledai/StrongREJECT",
        None,
        "train",
        "harmful",
        ("prompt", "category"),
        holds="harmful",
        gated=True,
    ),
    KnownSuite(
        "harmbench",
        "walledai/HarmBench",
        "standard",
        "train",
        "harmful",
        ("prompt", "category"),
        holds="harmful",
        gated=True,
    ),
    KnownSuite(
        "harmbench-contextual",
        "walledai/HarmBench",
        "contextual",
        "train",
        "harmful",
        ("prompt", "context", "category"),
        holds="harmful",
        gated=True,
    ),
)
_COPIES = (
    KnownSuite("", "walledai/XSTest", None, "test", "benign", _XSTEST, gated=True),
    KnownSuite("", "natolambert/xstest-v2-copy", None, "prompts", "benign", ("prompt", "type")),
    KnownSuite(
        "",
        "ToxicityPrompts/wildguard-train",
        None,
        "train",
        "harmful",
        ("prompt", "prompt_harm_label"),
    ),
)
"""Other places of the same rows, which a data set's id finds."""


def known_suite(name: str) -> KnownSuite | None:
    """The suite of that name, or the first of the data set with that id; None if there is none."""
    wanted = name.lower()
    for suite in KNOWN_SUITES:
        if wanted in (suite.name, *suite.aliases):
            return suite
    return next((s for s in (*KNOWN_SUITES, *_COPIES) if s.where.lower() == wanted), None)


def place_of(where: str, config: str | None, side: Side) -> KnownSuite | None:
    """The known part of a data set that holds prompts of one side, if it is a known one.

    Args:
        where: A data set's id.
        config: A configuration of it; None for the usual one.
        side: Which prompts are looked for.
    """
    parts = [s for s in (*KNOWN_SUITES, *_COPIES) if s.where == where]
    if config is not None:
        parts = [s for s in parts if s.config == config]
    return next((s for s in parts if s.side == side), parts[0] if parts else None)
