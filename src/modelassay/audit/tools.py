"""The tools by name: plain typed functions, and what a caller has to know to call them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from modelassay.audit import (
    aliases,
    asking,
    internals,
    mechanism,
    scoring,
    sessions,
    training,
    writing,
)
from modelassay.audit.config import Profile
from modelassay.audit.work import Work
from modelassay.errors import InputError
from modelassay.files.records import first_problem

Function = Callable[..., dict[str, Any]]
BEHAVIOUR: tuple[Function, ...] = (
    asking.query_models,
    asking.run_prompt_suite,
    scoring.score_candidate_suite,
)
INTERNALS: tuple[Function, ...] = (
    internals.get_top_features,
    internals.compare_top_features,
    internals.differential_feature_analysis,
    internals.specific_feature_activations,
    internals.get_feature_details,
    internals.nearest_explained_neighbors,
    internals.weight_diff_summary,
    mechanism.find_circuit,
    mechanism.find_features,
    mechanism.explain_jailbreak,
)
"""Not in the profile `behavior-only`."""
DATA: tuple[Function, ...] = (
    training.training_data_summary,
    training.sample_training_data,
    training.search_training_data,
    training.near_duplicates,
    training.rank_training_needles,
)
WRITING: tuple[Function, ...] = (writing.write_audit_report,)
SESSION: tuple[Function, ...] = (
    sessions.health,
    sessions.open_session,
    sessions.begin_run,
    sessions.close_session,
)


@dataclass(frozen=True)
class Tool:
    """One tool."""

    name: str
    description: str
    function: Function
    """Takes a `Work` and the arguments by name."""
    arguments: type[BaseModel]

    def schema(self) -> dict[str, Any]:
        """JSON schema of the arguments."""
        found = self.arguments.model_json_schema()
        found.pop("title", None)
        for entry in found.get("properties", {}).values():
            entry.pop("title", None)
        return found

    def run(self, work: Work, arguments: dict[str, Any]) -> dict[str, Any]:
        """Checks the arguments and does the work.

        Raises:
            InputError: one line that names the argument.
        """
        try:
            given = self.arguments.model_validate(arguments)
        except ValidationError as error:
            problem = first_problem(
                error, whole="the arguments", noun="argument", model=self.arguments
            )
            raise InputError(f"{self.name}: {problem}.") from error
        fields = type(given).model_fields
        return self.function(work, **{name: getattr(given, name) for name in fields})


def tools_of(profile: Profile) -> dict[str, Tool]:
    """The tools of a profile by name."""
    internals = INTERNALS if profile == "full" else ()
    functions = (*BEHAVIOUR, *internals, *DATA, *WRITING)
    return {function.__name__: _tool(function) for function in functions}


def session_tools() -> dict[str, Tool]:
    """The tools about the audit itself by name; clients of a server need them, nobody else."""
    return {function.__name__: _tool(function) for function in SESSION}


def other_names(tools: Mapping[str, Tool]) -> dict[str, Tool]:
    """The tools once more that are also known by another name, by that."""
    return {
        name: replace(
            tools[ours], name=name, description=f"Another name of {ours}, with its arguments."
        )
        for name, ours in aliases.TOOLS.items()
        if ours in tools
    }


def _tool(function: Function) -> Tool:
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        name: (hints[name], ... if each.default is inspect.Parameter.empty else each.default)
        for name, each in list(inspect.signature(function).parameters.items())[1:]
    }
    arguments = create_model(
        function.__name__, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields
    )
    return Tool(function.__name__, inspect.getdoc(function) or "", function, arguments)
