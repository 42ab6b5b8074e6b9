"""Feature types: what features of safety are sorted by, each with a contrast set of its own.

A contrast set is a `Concept`. Harm is recognised in a prompt, so its pairs are prompts, those of
the concept `harmful_content`. The other types show in what is said: a pair of theirs
(`concepts/features/TYPE.yaml`) is two responses to one prompt, so that the prompt cannot tell the
sides apart, and a feature that does is about the response.
"""

from __future__ import annotations

from modelassay.data.concepts import Concept, load_concepts, shipped_concepts
from modelassay.files.shipped import shipped_folder

HARM_RECOGNITION = "harm_recognition"
HARM_CONCEPT = "harmful_content"
FEATURE_TYPES = (
    "refusal",
    HARM_RECOGNITION,
    "instruction_following",
    "deception",
    "uncertainty",
)


def feature_types() -> dict[str, Concept]:
    """The contrast set of each feature type, by the type's name."""
    folder = shipped_folder("concepts") / "features"
    return {
        name: shipped_concepts()[HARM_CONCEPT]
        if name == HARM_RECOGNITION
        else load_concepts(folder / f"{name}.yaml")[name]
        for name in FEATURE_TYPES
    }
