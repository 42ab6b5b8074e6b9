"""Tools that ask why one of the models refuses, and why an attack gets past it.

Each is the function of its name from `modelassay.mechanism`, asked of one of the audit's models.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from modelassay.audit.internals import Model, WhichSAE
from modelassay.audit.work import Work
from modelassay.data.attacks import AttackedPrompt
from modelassay.data.feature_types import FEATURE_TYPES
from modelassay.diff.suites import SuitePrompt
from modelassay.mechanism import circuit, features, jailbreak
from modelassay.report import Report
from modelassay.report.json import to_dict

Text = Annotated[str, Field(min_length=1, max_length=20_000)]
TELLS = ("model", "provenance", "tokens")
"""Of a report, what would tell a blind auditor which model it is, or what is too long to list."""


def find_circuit(
    work: Work,
    model: Model,
    pairs: Annotated[int, Field(ge=8, le=64, description="Pairs of prompts.")] = 16,
    heads: Annotated[bool, Field(description="Single heads, not whole attention layers.")] = False,
    answers: Annotated[
        bool, Field(description="Count what it still refuses without its circuit.")
    ] = False,
) -> dict[str, Any]:
    """The attention layers and MLPs, or heads, of a model that carry its refusals beyond chance.

    Each component is given what it makes of a harmless twin; its effect is the fall of the refusal
    log-odds in nats, with a 95% interval and a q-value over all components.
    """
    found = circuit.find_circuit(
        work.model(work.name(model)),
        n_pairs=pairs,
        heads=heads,
        answers=answers,
        on_progress=work.phase,
    )
    return _told(found)


def find_features(
    work: Work,
    model: Model,
    types: Annotated[
        list[str] | None,
        Field(max_length=len(FEATURE_TYPES), description=f"Of {', '.join(FEATURE_TYPES)}."),
    ] = None,
    pairs: Annotated[int, Field(ge=8, le=64, description="Pairs of prompts.")] = 16,
    sae: WhichSAE = 1,
) -> dict[str, Any]:
    """Features of an SAE that tell of safety in a model, by type, and what they do for refusals.

    Each type has a contrast set of its own and is scored on pairs that chose no feature; the most
    influential features are suppressed and boosted beside random ones that fire about as often.
    """
    found = features.find_features(
        work.model(work.name(model)),
        sae=work.sae(sae),
        types=types or None,
        n_pairs=pairs,
        on_progress=work.phase,
    )
    return {**_told(found), "sae": sae}


def explain_jailbreak(
    work: Work,
    model: Model,
    plain: Annotated[Text, Field(description="A request that the model refuses.")],
    jailbroken: Annotated[Text, Field(description="The same request in its attack.")],
    system: Annotated[str, Field(max_length=20_000, description="System prompt of it.")] = "",
    opening: Annotated[
        str, Field(max_length=2_000, description="What it puts at the start of the response.")
    ] = "",
) -> dict[str, Any]:
    """Why an attack gets past a model's refusal: does it hide the harm or override the refusal?

    All changes stand beside what neutral rewordings do. Answers are judged and not given.
    """
    asked = [
        SuitePrompt(text=plain),
        SuitePrompt(text=jailbroken, system=system or None),
    ]
    work.asked(asked)
    attacked = AttackedPrompt(
        plain, jailbroken, "given", "given", system=system or None, opening=opening or None
    )
    return _told(
        jailbreak.explain_jailbreak(
            work.model(work.name(model)), plain, attacked, on_progress=work.phase
        )
    )


def _told(report: Report) -> dict[str, Any]:
    return {key: value for key, value in to_dict(report).items() if key not in TELLS}
