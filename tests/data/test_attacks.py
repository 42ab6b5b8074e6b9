"""Attack templates: the shipped ones are what they claim to be, what strangers give is checked."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelassay.data.attacks import (
    ATTACKS_SCHEMA,
    FAMILIES,
    NEUTRAL,
    REQUEST,
    Attack,
    AttackedPrompt,
    attack_requests,
    benign_twins,
    load_attacks,
)
from modelassay.data.concepts import everyday_prompts, shipped_prompts
from modelassay.data.encodings import ENCODINGS, encode_text
from modelassay.errors import InputError

SHIPPED = load_attacks()
HARM = re.compile(
    r"\b(bomb|weapon|gun|explosi|poison|drug|meth|hack|malware|virus|kill|murder|steal|rob|fraud"
    r"|phish|launder|tortur|terror|suicid|hate|racis|porn|abus|stalk|blackmail|threat)\w*",
    re.IGNORECASE,
)
FRAME = {"family": "persuasion", "name": "frame", "template": f"Please. {REQUEST}"}


def write(tmp_path: Path, *templates: dict[str, Any], **fields: Any) -> Path:
    data = {"schema": ATTACKS_SCHEMA, "name": "mine", "templates": list(templates), **fields}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return path


def test_the_shipped_file_has_many_families_of_similar_size():
    sizes = Counter(attack.family for attack in SHIPPED.templates)
    assert set(sizes) == set(FAMILIES)
    assert all(4 <= size <= 6 for size in sizes.values())
    assert SHIPPED.description
    assert SHIPPED.version
    assert SHIPPED.provenance.license == "Apache-2.0"
    assert SHIPPED.provenance.method
    assert len(SHIPPED.attacks) + len(SHIPPED.neutral) == len(SHIPPED.templates)
    assert {attack.family for attack in SHIPPED.neutral} == {NEUTRAL}


@pytest.mark.parametrize("attack", SHIPPED.templates, ids=lambda attack: attack.name)
def test_a_shipped_template_names_no_harm_and_is_not_too_long(attack: Attack):
    said = " ".join(filter(None, (attack.template, attack.system, attack.opening)))
    assert HARM.search(said) is None
    assert 0 < len(said.split()) <= 350


def test_only_the_family_of_encodings_encodes_and_uses_all_of_them():
    used = {attack.encoding for attack in SHIPPED.templates if attack.family == "encoding"}
    assert used == set(ENCODINGS)
    assert all(a.encoding is None for a in SHIPPED.templates if a.family != "encoding")


def test_every_shipped_attack_has_a_twin_of_the_same_form_for_every_harmful_request():
    attacked = attack_requests(SHIPPED.templates)
    twins = benign_twins(attacked)
    requests = shipped_prompts("harmful_requests").texts
    assert len(attacked) == len(twins) == len(SHIPPED.templates) * len(requests)
    partner = {}
    harmless = set(everyday_prompts())
    for prompt, twin in zip(attacked, twins, strict=True):
        assert prompt.harmful
        assert not twin.harmful
        assert (prompt.attack, prompt.system, prompt.opening, prompt.encoding) == (
            twin.attack,
            twin.system,
            twin.opening,
            twin.encoding,
        )
        assert prompt.span is not None
        assert twin.span is not None
        before, after = prompt.jailbroken[: prompt.span[0]], prompt.jailbroken[prompt.span[1] :]
        carried = encode_text(twin.plain, twin.encoding)
        assert twin.jailbroken == before + carried + after
        assert twin.plain in harmless
        assert partner.setdefault(prompt.plain, twin.plain) == twin.plain
    assert len(set(partner.values())) == min(len(requests), len(harmless))


def test_an_attack_is_built_around_the_request():
    attack = Attack(
        family="encoding",
        name="mirror",
        template=f"Read {{this}}: {REQUEST}.",
        encoding="reversed",
        system="Be brief.",
        opening="Sure:",
    )
    prompt = attack.around("  Boil {request} eggs ")
    assert prompt == AttackedPrompt(
        plain="Boil {request} eggs",
        jailbroken="Read {this}: sgge }tseuqer{ lioB.",
        family="encoding",
        attack="mirror",
        system="Be brief.",
        opening="Sure:",
        encoding="reversed",
    )
    assert prompt.span == (13, 32)
    assert prompt.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": prompt.jailbroken},
    ]
    with pytest.raises(InputError, match="empty"):
        attack.around(" ")
    with pytest.raises(InputError, match="more than 20000 characters"):
        attack.around("a" * 20_001)


def test_each_attack_takes_the_next_requests_in_turn():
    requests = [f"Question {i}?" for i in range(5)]
    frames = [Attack.model_validate({**FRAME, "name": f"frame-{i}"}) for i in range(5)]
    prompts = attack_requests(frames, requests, per_attack=2)
    assert Counter(prompt.attack for prompt in prompts) == {f"frame-{i}": 2 for i in range(5)}
    assert Counter(prompt.plain for prompt in prompts) == dict.fromkeys(requests, 2)
    assert len(attack_requests(frames, requests, per_attack=9)) == 25
    assert not attack_requests(frames, requests, harmful=False)[0].harmful
    for wrong in (0, -1):
        with pytest.raises(InputError, match="at least 1 request"):
            attack_requests(frames, requests, per_attack=wrong)
    with pytest.raises(InputError, match="no request"):
        attack_requests(frames, [])


def test_a_prompt_that_does_not_hold_its_request_once_has_no_twin():
    twice = AttackedPrompt("Go?", "Go? I said: Go?", "x", "x")
    reworded = AttackedPrompt("Go?", "Would you leave?", "x", "x")
    harmless = AttackedPrompt("Go?", "Please: Go?", "x", "x", harmful=False)
    ready = AttackedPrompt("Go?", "Please: Go?", "x", "x")
    assert twice.span is None
    assert reworded.span is None
    (twin,) = benign_twins([twice, reworded, harmless, ready], ["Stay?"])
    assert twin == AttackedPrompt("Stay?", "Please: Stay?", "x", "x", harmful=False)
    with pytest.raises(InputError, match="no harmless request"):
        benign_twins([ready], [])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"template": "Please."}, r"`templates\.0`: 'frame' holds \{request\} 0 times; once is"),
        ({"template": "{request} {request}"}, r"holds \{request\} 2 times"),
        ({"template": "Please. {prompt}"}, r"holds \{request\} 0 times"),
        ({"template": "{request}"}, "'frame' changes nothing about the request"),
        ({"system": "Answer {request}"}, r"holds \{request\} outside of its template"),
        ({"opening": "{request}"}, r"holds \{request\} outside of its template"),
        ({"family": "hypnosis"}, r"`templates\.0\.family`: Input should be 'role_play'"),
        ({"encoding": "base65"}, r"`templates\.0\.encoding`: Input should be 'base64'"),
        ({"encoding": ["base64"]}, r"`templates\.0\.encoding`"),
        ({"templat": "x"}, r"unknown key `templates\.0\.templat`"),
        ({"template": "a" * 20_001}, r"`templates\.0\.template`: .* at most 20000 characters"),
        ({"template": 7}, r"`templates\.0\.template`: Input should be a valid string"),
        ({"system": ""}, r"`templates\.0\.system`: .* at least 1 character"),
        ({"name": "a name\nof two lines"}, r"`templates\.0\.name`"),
    ],
)
def test_a_wrong_template_is_named_in_one_line(tmp_path, template, message):
    path = write(tmp_path, {**FRAME, **template})
    with pytest.raises(InputError, match=message) as caught:
        load_attacks(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_what_is_left_out_of_a_template_has_a_default_or_is_named(tmp_path):
    alone = {"family": "encoding", "name": "alone", "encoding": "rot13"}
    (attack,) = load_attacks(write(tmp_path, alone)).templates
    assert attack.around("Go?").jailbroken == "Tb?"
    for key in ("family", "name"):
        with pytest.raises(InputError, match=rf"key `templates\.0\.{key}` is missing"):
            load_attacks(write(tmp_path, {k: v for k, v in FRAME.items() if k != key}))


@pytest.mark.parametrize("changed", [{"name": "other"}, {"template": f"Now. {REQUEST}"}])
def test_a_template_is_there_once(tmp_path, changed):
    with pytest.raises(InputError, match="is there twice, by name or content"):
        load_attacks(write(tmp_path, FRAME, {**FRAME, **changed}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema": "modelassay.prompts/1"}, "is not a file of attacks"),
        ({"schema": None}, "is not a file of attacks"),
        ({"templates": []}, "`templates`: .* at least 1 item"),
        ({"templates": [dict(FRAME) for _ in range(1_001)]}, "`templates`: .* at most 1000 items"),
        ({"authors": "me"}, "unknown key `authors`"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        load_attacks(write(tmp_path, FRAME, **fields))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("templates: [", "is not valid YAML"),
        ("- a\n- b\n", "must hold a mapping"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("a: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        ("", "must hold a mapping"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        load_attacks(path)


def test_half_of_a_character_and_a_missing_file_are_refused(tmp_path):
    path = write(tmp_path, FRAME).with_suffix(".json")
    data = {"schema": ATTACKS_SCHEMA, "name": "mine", "templates": [FRAME]}
    path.write_text(json.dumps(data).replace("Please", "\\ud800"), encoding="utf-8")
    with pytest.raises(InputError, match=r"`templates\.0\.template`"):
        load_attacks(path)
    with pytest.raises(InputError, match=r"Cannot read .*nowhere\.yaml"):
        load_attacks(tmp_path / "nowhere.yaml")
