"""`explain_attacks()`: which attacks of a suite work, in which ways, and can one tell beforehand?

Only requests that the model refuses as they are count: an attack on what is answered anyway gets
past nothing. Each attacked prompt is judged by its answer, its way of working is told as in
`explain_jailbreak`, and what changes inside is taken from what each component writes to the last
token for refusal itself, which costs one pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from typing_extensions import Unpack

from modelassay.data.attack_suites import AttackSuite, read_attack_suite
from modelassay.data.attacks import NEUTRAL, AttackedPrompt
from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.mechanism.attack_survey_report import AttackedRow, AttackSurvey
from modelassay.mechanism.attacked import (
    Asked,
    InsideReading,
    ask_attacked,
    ask_plain,
    read_inside,
    with_outcomes,
)
from modelassay.mechanism.clusters import AttackGroups, group_attacks
from modelassay.mechanism.directions import find_directions
from modelassay.mechanism.jailbreak import harmful_requests, open_chat_model, reword
from modelassay.mechanism.mechanisms import NullChanges, mechanism_of, works
from modelassay.mechanism.pathway import aligned, find_pathways
from modelassay.mechanism.prediction import predict_attacks
from modelassay.mechanism.swapping import Swapper
from modelassay.models import LoadedModel, ModelOptions, ModelRef
from modelassay.models.components import Components, find_components
from modelassay.progress import OnPhase, OnProgress, phase_of, silent, told
from modelassay.statistics import predict
from modelassay.threads import sharing

PER_ATTACK = 4
"""Requests for each attack."""
NULL_REQUESTS = 8
AT_ONCE = 16
"""Pairs whose components are kept at a time."""


@sharing
def explain_attacks(
    model: str | ModelRef | LoadedModel,
    suite: AttackSuite | str | Path | None = None,
    *,
    per_attack: int | None = PER_ATTACK,
    batch_tokens: int | None = None,
    on_progress: OnPhase = silent,
    **load_options: Unpack[ModelOptions],
) -> AttackSurvey:
    """Explains a suite of attacks.

    Args:
        model: An id (see `modelassay.load`), a reference or a loaded model.
        suite: A suite, a file of templates or of pairs, or a Hub data set; None for the templates
            that come with modelassay.
        per_attack: Most requests for each attack; of a suite that is given as read, all of it.
        batch_tokens: Upper bound on tokens in a batch.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load`.

    Raises:
        InputError: no such suite, or the model refuses none of its requests.
        UnavailableError: something needed is not there now.
    """
    if not isinstance(suite, AttackSuite):
        token = load_options.get("token")
        suite = read_attack_suite(suite, per_attack=per_attack, token=token)
    attacks = [each for each in suite.prompts if each.harmful and each.family != NEUTRAL]
    if not attacks:
        raise InputError(f"{suite.source} holds no attack on a harmful request.")
    loaded = open_chat_model(model, on_progress, load_options)
    requests = list(dict.fromkeys(each.plain for each in attacks))
    rest = [text for text in harmful_requests() if text not in requests]
    directions = find_directions(
        loaded,
        # Of a suite of all that a scan asks, some requests have to set the directions as well.
        left_out=requests if len(rest) >= LEAST_UNREAD else (),
        batch_tokens=batch_tokens,
        on_progress=on_progress,
    )
    tail = directions.tail

    def read(asked: Sequence[Asked], phase: str, *, answers: bool) -> list[InsideReading]:
        found = read_inside(
            loaded,
            asked,
            directions,
            batch_tokens=batch_tokens,
            on_progress=phase_of(on_progress, phase),
        )
        if not answers:
            return found
        report = phase_of(on_progress, "answering")
        return with_outcomes(loaded, asked, found, batch_tokens=batch_tokens, on_progress=report)

    plain_asked = [ask_plain(loaded, text, tail) for text in requests]
    plain = dict(zip(requests, read(plain_asked, "plain requests", answers=True), strict=True))
    refused = [text for text in requests if plain[text].outcome == "refuses"]
    if not refused:
        raise InputError(
            f"{loaded.info.id} refuses none of the {len(requests)} plain requests of"
            f" {suite.source}, so there is nothing for an attack to get past."
        )
    tried, asked, unasked = _ask(loaded, [a for a in attacks if a.plain in refused], tail)
    readings = read(asked, "attacked requests", answers=True)
    null_pairs = reword(loaded, refused[:NULL_REQUESTS], tail)
    flat = read([each for pair in null_pairs for each in pair], "neutral requests", answers=False)
    changes = NullChanges.of(flat[::2], flat[1::2])
    rows = tuple(
        AttackedRow(
            family=attack.family,
            attack=attack.attack,
            request=requests.index(attack.plain),
            plain=plain[attack.plain],
            attacked=reading,
            way=mechanism_of(plain[attack.plain], reading, changes, directions).way,
        )
        for attack, reading in zip(tried, readings, strict=True)
    )
    judged = [row for row in rows if row.attacked.outcome is not None]
    components = find_components(loaded.network)
    by_request = dict(zip(requests, plain_asked, strict=True))
    groups = _groups(
        loaded,
        components,
        tried,
        [(by_request[a.plain], one) for a, one in zip(tried, asked, strict=True)],
        null_pairs,
        tail,
        batch_tokens,
        phase_of(on_progress, "contributions"),
    )
    pathways = find_pathways(
        loaded,
        components,
        tried,
        tail,
        lost=[row.plain.log_odds - row.attacked.log_odds for row in rows],
        batch_tokens=batch_tokens,
        on_progress=on_progress,
    )
    return AttackSurvey(
        model=loaded.info,
        suite=suite.source,
        suite_sha256=suite.sha256,
        rows=rows,
        null=changes,
        directions=directions,
        prediction=predict_attacks(
            [row.attacked for row in judged],
            [works(row.attacked) for row in judged],
            [row.family for row in judged],
            [row.attack for row in judged],
        ),
        groups=groups,
        pathways=pathways,
        n_requests=len(requests),
        n_refused=len(refused),
        unasked=unasked,
        provenance={"versions": installed_versions(), "time": utc_now()},
    )


LEAST_UNREAD = 32
"""Harmful requests that must be left to set the directions for those of a suite to be left out."""


def _ask(
    model: LoadedModel, attacks: Sequence[AttackedPrompt], tail: int
) -> tuple[list[AttackedPrompt], list[Asked], dict[str, str]]:
    """Prompts that the model can read, and by attack why others cannot be asked."""
    tried, asked, unasked = [], [], {}
    for attack in attacks:
        try:
            asked.append(ask_attacked(model, attack, tail))
            tried.append(attack)
        except InputError as error:  # too long, or a template that takes no system prompt
            unasked[attack.attack] = str(error)
    if not asked:
        raise InputError(f"No attack can be put to the model: {next(iter(unasked.values()))}")
    return tried, asked, unasked


def _groups(
    model: LoadedModel,
    components: Components,
    attacks: Sequence[AttackedPrompt],
    pairs: Sequence[tuple[Asked, Asked]],
    null: Sequence[tuple[Asked, Asked]],
    tail: int,
    batch_tokens: int | None,
    on_progress: OnProgress,
) -> AttackGroups | None:
    parts = components.of("attention", "mlp")

    def losses(of: Sequence[tuple[Asked, Asked]]) -> np.ndarray | None:
        """[pair, component], nats that it writes less for refusal than on the plain request."""
        found = []
        for some in (of[i : i + AT_ONCE] for i in range(0, len(of), AT_ONCE)):
            lined_up = [aligned(pair, tail) for pair in some]
            swapper = Swapper(model, components, lined_up, parts, batch_tokens=batch_tokens)
            if (read := swapper.direct()) is None:
                return None
            direct = read[0]
            found.append(np.stack([direct[part][1] - direct[part][0] for part in parts], axis=1))
        return np.concatenate(found)

    if (usual := losses(null)) is None:
        return None
    spread = np.array([predict(column).error for column in usual.T])
    spread = np.maximum(spread, np.median(spread[spread > 0]) if (spread > 0).any() else 1.0)
    profiles: dict[str, list[np.ndarray]] = defaultdict(list)
    for start in told(range(0, len(pairs), AT_ONCE), on_progress):
        some = slice(start, start + AT_ONCE)
        if (lost := losses(pairs[some])) is None:
            return None
        for attack, row in zip(attacks[some], lost, strict=True):
            profiles[attack.attack].append(row / spread)
    stacked = {name: np.stack(rows) for name, rows in profiles.items()}
    return group_attacks(stacked, [str(part) for part in parts])
