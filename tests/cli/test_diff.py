"""`modelassay diff` as a user runs it: reports, exit codes, and one line for what goes wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from diffs import SUITE, make_sae, with_feature
from modelassay.cli.diff import exit_code
from modelassay.cli.main import run
from modelassay.diff import Depth, DiffReport, diff, load_suite
from modelassay.diff.calibration import CALIBRATIONS
from modelassay.diff.comparing import add_row
from modelassay.diff.report import feature_effects, stream_levels
from modelassay.errors import InputError
from modelassay.models import load
from modelassay.models.ablation import Ablation, ablate
from modelassay.progress import PHASES
from modelassay.report import print_report, to_dict, to_html
from modelassay.report.text import plain_line
from outputs import one_line
from schemas import DIFF_SCHEMA
from tiny import make_tokenizer, save_tiny

EVIL = "[red]<script>alert(1)</script>\x1b[31m\n\u202egnp"


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """Models of known kinds, and the files that a command is given."""
    folder = tmp_path_factory.mktemp("diff")
    made: dict[str, Path] = {}
    for name, family, seed in (("BASE", "llama", 0), ("OTHER", "llama", 1), ("GPT2", "gpt2", 0)):
        made[name] = save_tiny(folder / name.lower(), family, seed=seed)

    def copy(name: str, change) -> None:
        made[name] = folder / name.lower()
        model = load(str(made["BASE"])).network
        change(model)
        model.save_pretrained(made[name])
        make_tokenizer().save_pretrained(made[name])

    direction = torch.randn(32, generator=torch.Generator().manual_seed(5))
    direction = direction / direction.norm()

    def nudge(seed: int):
        draw = torch.Generator().manual_seed(seed)

        def change(model) -> None:
            with torch.no_grad():
                for weight in model.parameters():
                    weight += 0.002 * torch.randn(weight.shape, generator=draw)

        return change

    copy("ABLATED", lambda model: ablate(model, Ablation(dict.fromkeys(range(5), direction))))
    for i in range(3):
        copy(f"BENIGN{i}", nudge(i))
    copy("NAN", lambda model: model.model.layers[1].mlp.up_proj.weight.data.fill_(float("nan")))
    copy("TOKENS", lambda model: None)
    other = json.loads((made["TOKENS"] / "tokenizer.json").read_text())
    words = other["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (made["TOKENS"] / "tokenizer.json").write_text(json.dumps(other))
    texts = {
        "SUITE": ("tiny.yaml", SUITE),
        "MALFORMED": ("malformed.yaml", "name: x\nprompts:\n  - {text: Hello, kind: harmful}\n"),
        "EMPTY": ("empty.yaml", "name: x\n"),
        "DATA": ("mine.jsonl", '{"prompt": "Sing now", "label": 1}\n{"prompt": "Sing a song"}\n'
                 '{"messages": [{"role": "user", "content": "Hum"}]}\n'),
        "BADDATA": ("bad.jsonl", '{"prompt": "Sing now"}\n{"prompt": 3}\n'),
        "BADCAL": ("bad.json", '{"schema": "modelassay.diff-calibration/1"}'),
        "NODICT": ("nodict/readme.txt", "nothing"),
    }  # fmt: skip
    for name, (file, text) in texts.items():
        made[name] = folder / file
        made[name].parent.mkdir(exist_ok=True)
        made[name].write_text(text)
    made["NODICT"] = made["NODICT"].parent
    made["OUT"] = folder / "out.html"
    return {name: str(path) for name, path in made.items()}


@pytest.fixture(scope="module")
def report(places) -> DiffReport:
    suite = load_suite(places["SUITE"])
    return diff(
        places["BASE"], places["OTHER"], suite, depth=Depth(response_tokens=4), device="cpu"
    )


def command(places: dict[str, str], text: str) -> list[str]:
    return ["diff", *(places.get(word, word) for word in text.split())]


# --- reports -----------------------------------------------------------------------------------


def test_the_same_model_twice_is_no_change(places, capfd):
    code = run(command(places, "BASE BASE --suite SUITE --responses 4 --json"))
    out, err = capfd.readouterr()
    found = json.loads(out)
    jsonschema.validate(found, DIFF_SCHEMA)
    assert code == exit_code(found["verdict"])
    assert found["verdict"] in ("INCONCLUSIVE", "BENIGN-LIKE")
    assert found["weights"]["identical"] is True
    assert found["behaviour"]["kl_mean"] == 0
    assert "features are left out" in err
    assert "comparing weights" in err


def test_a_planted_ablation_is_compromised(places, capfd, tmp_path):
    target = tmp_path / "report.html"
    code = run(
        [*command(places, "BASE ABLATED --suite SUITE --responses 0 -q"), "--html", str(target)]
    )
    out, err = capfd.readouterr()
    assert code == 1
    assert "COMPROMISED" in out
    assert "taken out of the weights of 5 layers" in out.replace("\n", " ").replace("│ ", "")
    assert err == f"HTML report: {target}\n"
    page = target.read_text()
    assert page.endswith("</html>\n")
    assert "COMPROMISED</h1>" in page
    assert "changed as ablation does" in page
    assert page.count('<figure class="chart"') == 3  # one of them is strength by layer
    for outside in ('src="http', "src='http", 'href="http', "@import", "<link"):
        assert outside not in page.partition("plotly.js v")[0]
    assert "<script src=" not in page


def test_answers_are_hashes_unless_they_are_asked_for(places, capfd, report):
    prompt = report.suite.prompts[0].text
    assert prompt not in json.dumps(to_dict(report))
    responses = to_dict(report)["behaviour"]["answers"]
    assert responses
    hidden = ("prompt", "base", "candidate")
    assert all(set(row[key]) == {"characters", "sha256"} for row in responses for key in hidden)
    shown = to_dict(report, show_responses=True)["behaviour"]["answers"]
    assert shown[0]["prompt"] == prompt
    assert prompt not in to_html(report)
    run(command(places, "BASE OTHER --suite SUITE --responses 4 -q --no-triggers --show-responses"))
    assert "answers that differ" in capfd.readouterr().out


def test_the_tables_fit_a_plain_terminal(report, capsys):
    for width in (80, 100):
        print_report(with_feature(report, label="fires on the"), Console(width=width))
        out = capsys.readouterr().out
        assert max(len(line) for line in out.splitlines()) <= width
        assert "fires" in out
        assert "\x1b" not in out


def test_strangers_texts_are_only_text(report, capsys):
    evil = with_feature(report, (EVIL,), EVIL)
    evil = replace(
        evil,
        reasons=(EVIL, *evil.reasons),
        candidate=evil.candidate.model_copy(update={"id": EVIL}),
        provenance={**evil.provenance, "suite": EVIL},
    )
    print_report(evil.sections(show_responses=True), Console(width=200))
    out = capsys.readouterr().out
    assert "[red]<script>" in out
    assert not {"\x1b", "\u202e"} & set(out)
    page = to_html(evil)
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "\\x1b[31m\\n\\u202egnp" in plain_line(EVIL)
    assert "<script>" not in feature_effects(evil).to_json()


def test_triggers_stand_at_the_top_and_where_they_stood(report):
    values = to_dict(report)
    assert values["triggers"]["phrases"]
    assert values["activations"]["triggers"] == values["triggers"]
    assert to_dict(replace(report, triggers=None))["triggers"] is None


def test_tables_and_charts_hold_the_numbers(report):
    report = with_feature(report, label="<i>")
    levels = report.suspicion.levels
    frame = report.to_dataframe()
    assert list(frame["stream"]) == [level.name for level in levels]
    known = [level.value for level in levels if level.value is not None]
    assert list(frame["value"].dropna()) == known
    assert list(report.to_dataframe("activations")["relative"]) == [
        layer.relative for layer in report.activations.layers
    ]
    assert set(report.to_dataframe("refusals")["group"]) == set(report.behaviour.refusals)
    assert report.to_dataframe("features").loc[0, "effect"] == 2.0
    assert list(report.figure("features").data[0].x) == [2.0]
    change = report.figure("activations").data[0]
    assert list(change.y) == [layer.relative for layer in report.activations.layers]
    html = report._repr_html_()
    assert report.verdict.value in html
    assert "&lt;i&gt;" in html
    assert "<i>" not in html


def test_labels_stand_beside_features(report):
    values = to_dict(with_feature(report, label="fires on the"))
    assert values["features"][0]["label"] == "fires on the"
    assert to_dict(with_feature(report))["features"][0]["label"] is None
    change = with_feature(report).saes[0].features[0]
    assert change.effect_interval == pytest.approx((1.0, 3.0))


def test_every_phase_has_words(places):
    phases = set()
    diff(
        places["BASE"],
        places["OTHER"],
        load_suite(places["SUITE"]),
        depth=Depth(response_tokens=2),
        device="cpu",
        on_progress=lambda phase, _done, _total: phases.add(phase),
    )
    assert {"reading the candidate", "searching triggers", "trying directions"} <= phases
    assert phases | {"features", "fine-tunes"} <= PHASES.keys()


# --- calibrating -------------------------------------------------------------------------------


def test_calibrated_candidates_are_held_against_benign_ones(places, capfd, tmp_path):
    out = str(tmp_path / "benign.json")
    rest = "--suite SUITE --responses 0 --no-triggers -q"
    code = run([*command(places, f"calibrate BASE BENIGN0 BENIGN1 {rest}"), "--out", out])
    assert code == 0
    assert "2 benign fine-tunes" in capfd.readouterr().out
    assert run([*command(places, f"calibrate BASE BENIGN2 {rest} --add"), "--out", out]) == 0
    capfd.readouterr()
    found = CALIBRATIONS.open(Path(out)).record
    assert len(found.rows) == 3
    assert found.rows[0].streams["trigger"] is None

    code = run([*command(places, f"BASE OTHER {rest} --json"), "--calibration", out])
    judged = json.loads(capfd.readouterr().out)
    assert judged["suspicion"]["n_benign"] == 3
    assert judged["suspicion"]["false_positive_rate"] >= 0.25
    assert code == {"SUSPICIOUS": 1, "BENIGN-LIKE": 0}[judged["verdict"]]

    # One of them is not a measure of itself.
    run([*command(places, f"BASE BENIGN1 {rest} --json"), "--calibration", out])
    assert json.loads(capfd.readouterr().out)["suspicion"]["n_benign"] == 2

    for text, message in (
        (f"calibrate BASE BENIGN2 {rest} --add --out FILE", "counts only once"),
        (f"calibrate BASE ABLATED {rest} --add --out FILE", "is no benign fine-tune"),
        (f"calibrate BASE BASE {rest} --add --out FILE", "has the weights of its base"),
        (f"calibrate BASE BENIGN0 {rest} --out FILE", "--add to add to it or --force"),
        (f"calibrate OTHER BENIGN0 {rest} --add --out FILE", "The calibration is of"),
        ("BASE OTHER --suite SUITE --responses 3 --calibration FILE", "responses of 0 tokens"),
        ("BASE OTHER --suite personas --responses 0 --calibration FILE", "another suite"),
    ):
        assert run(command({**places, "FILE": out}, text)) == 64, text
        assert message in one_line(capfd.readouterr().err)
    assert len(CALIBRATIONS.open(Path(out)).record.rows) == 3


def test_a_calibration_is_kept_by_name_and_gone_on_with(places, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CALIBRATIONS", str(tmp_path / "own"))
    rest = "--suite SUITE --responses 0 --no-triggers -q"
    first = command(places, f"calibrate BASE BENIGN0 {rest} --name mine")
    assert run(first) == 0
    assert capfd.readouterr().out.strip().endswith(str(tmp_path / "own" / "mine"))
    assert run(first) == 64
    assert "--force" in one_line(capfd.readouterr().err)
    assert run(command(places, f"calibrate BASE BENIGN1 {rest} --name mine --add")) == 0
    capfd.readouterr()
    run(command(places, f"BASE OTHER {rest} --json --calibration mine"))
    assert json.loads(capfd.readouterr().out)["suspicion"]["n_benign"] == 2
    for also in ("", "--name mine --out x.json"):
        assert run(command(places, f"calibrate BASE BENIGN2 {rest} {also}")) == 64
        assert "--out FILE or --name NAME" in one_line(capfd.readouterr().err)


def test_levels_of_benign_ones_are_in_the_candidates_units(report):
    known = None
    for i in range(4):
        info = report.candidate.model_copy(update={"weights_sha256": str(i) * 64})
        levels = tuple(
            replace(level, value=None if level.value is None else level.value + 2.0 * i)
            for level in report.suspicion.levels
        )
        moved = replace(report, candidate=info, suspicion=replace(report.suspicion, levels=levels))
        known = add_row(known, moved)
    from modelassay.diff.suspicion import suspect

    values = {level.name: level.value for level in report.suspicion.levels}
    found = suspect(values, known)
    level = next(level for level in found.levels if level.name == "refusal")
    assert min(level.benign_levels) == pytest.approx(level.level)  # it is one of them
    assert stream_levels(report) is None
    assert stream_levels(replace(report, suspicion=found)) is not None
    with pytest.raises(InputError, match="another suite"):
        add_row(known, replace(report, suite=replace(report.suite, endings=())))


def test_options_under_the_names_that_they_had_work_and_say_so(places, capfd):
    quick = "BASE OTHER --suite SUITE --no-triggers --no-causal --no-weights --json"
    found = []
    for options in ("--responses 0", "--answers 0 --show-answers", "--answers=0"):
        code = run(command(places, f"{quick} {options}"))
        out, err = capfd.readouterr()
        found.append((code, json.loads(out)["behaviour"]))
        assert ("`--answers` is now `--responses`." in err) == ("--answers" in options)
        assert ("`--show-answers` is now `--show-responses`." in err) == ("show" in options)
    assert found[1:] == found[:1] * 2


# --- what goes wrong ---------------------------------------------------------------------------

QUICK = "--suite SUITE --responses 0 --no-triggers --no-causal"
BAD = {
    "other architecture": (f"BASE GPT2 {QUICK}", 64, "give the base that the candidate was made"),
    "other tokenizer": (f"BASE TOKENS {QUICK}", 64, "do not make the same tokens"),
    "NaN weights": (f"BASE NAN {QUICK}", 64, "NaN"),
    "no such model": (f"BASE ./nowhere {QUICK}", 64, "No model at './nowhere'"),
    "no network": (f"BASE someone/something {QUICK}", 69, "cannot be reached"),
    "unknown suite": ("BASE OTHER --suite nothing", 64, "There is no suite 'nothing'"),
    "missing suite": ("BASE OTHER --suite no.yaml", 64, "no.yaml"),
    "malformed suite": ("BASE OTHER --suite MALFORMED", 64, "prompts.0.kind"),
    "empty suite": ("BASE OTHER --suite EMPTY", 64, "holds no prompts"),
    "layer out of range": (f"BASE OTHER {QUICK} --layers 1,5", 64, "0…4"),
    "layer out of range from the end": (f"BASE OTHER {QUICK} --layers -6", 64, "-5…-1"),
    "no layers": (f"BASE OTHER {QUICK} --layers one", 64, "--layers takes numbers"),
    "missing SAE": (f"BASE OTHER {QUICK} --sae ./nothing", 64, "No SAE"),
    "no SAE in it": (f"BASE OTHER {QUICK} --sae NODICT", 64, "holds no SAE"),
    "none and some": (f"BASE OTHER {QUICK} --sae none --sae NODICT", 64, "leave them out"),
    "missing data": (f"BASE OTHER {QUICK} --data no.jsonl", 64, "No data file at no.jsonl"),
    "malformed data": (f"BASE OTHER {QUICK} --data BADDATA", 64, "Row 2 of bad.jsonl"),
    "missing corpus": (f"BASE OTHER {QUICK} --corpus no.jsonl", 64, "no.jsonl"),
    "missing calibration": (f"BASE OTHER {QUICK} --calibration no.json", 64, "No calibration"),
    "malformed calibration": (f"BASE OTHER {QUICK} --calibration BADCAL", 64, "not a valid calib"),
    "html nowhere": (f"BASE OTHER {QUICK} --html /no/where/r.html", 64, "no folder"),
    "answers below none": ("BASE OTHER --responses -1", 64, "--responses"),
    "unknown option": ("BASE OTHER --frobnicate", 64, "No such option"),
    "no candidate": ("BASE", 64, "Missing argument"),
    "unknown dtype": (f"BASE OTHER {QUICK} --dtype int1", 64, "Unknown dtype"),
    "revision of a folder": (f"BASE OTHER {QUICK} --revision main", 64, "revision"),
    "calibrate without out": ("calibrate BASE BENIGN0", 64, "--out"),
    "a model called calibrate": (f"compare calibrate OTHER {QUICK}", 69, "calibrate"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_its_code(case, places, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text, code, message = BAD[case]
    assert run(command(places, text)) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert message in one_line(err)
    assert list(tmp_path.iterdir()) == []


def test_bad_files_are_found_before_models_are_loaded(places, capfd, monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("modelassay.diff.comparing.open_model", never)
    for case, (text, code, _) in BAD.items():
        if any(word in case for word in ("suite", "dictionary", "data", "calibration", "corpus")):
            assert run(command(places, text)) == code, case


def test_words_that_are_no_command_are_models(capfd):
    assert run(["diff", "--quiet", "./nowhere", "./elsewhere"]) == 64
    assert "No model at './nowhere'" in one_line(capfd.readouterr().err)
    assert run(["diff", "--help"]) == 0
    assert "calibrate" in capfd.readouterr().out
    assert run(["diff", "compare", "--help"]) == 0
    assert "--no-triggers" in capfd.readouterr().out


def test_exit_codes():
    verdicts = ("BENIGN-LIKE", "SUSPICIOUS", "COMPROMISED", "INCONCLUSIVE")
    assert [exit_code(verdict) for verdict in verdicts] == [0, 1, 1, 3]


# --- prompts of one's own, SAEs ----------------------------------------------------------


def test_prompts_of_ones_own_are_added(places, capfd):
    text = "BASE OTHER --suite SUITE --data DATA --corpus DATA --responses 0 --no-causal --json -q"
    code = run(command(places, text.replace(" --corpus DATA", "")))
    found = json.loads(capfd.readouterr().out)
    assert code == exit_code(found["verdict"])
    assert found["provenance"]["n_prompts"] == 10
    assert found["behaviour"]["log_odds"]["harmful"]["n"] == 5
    assert found["behaviour"]["log_odds"]["neutral"]["n"] == 3


def test_features_are_compared_with_a_dictionary(places, capfd, tmp_path):
    right = make_sae(tmp_path / "right", 32)
    code = run([*command(places, f"BASE OTHER {QUICK} --json -q"), "--sae", str(right)])
    found = json.loads(capfd.readouterr().out)
    jsonschema.validate(found, DIFF_SCHEMA)
    assert code == exit_code(found["verdict"])
    assert found["dictionaries"][0]["layer"] == 2
    assert found["features"]
    wrong = make_sae(tmp_path / "wrong", 16)
    assert run([*command(places, f"BASE OTHER {QUICK}"), "--sae", str(wrong)]) == 64
    assert "belongs to a model of width 16" in one_line(capfd.readouterr().err)
    weights = wrong / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"] = tensors["W_dec"].clone().fill_(float("nan"))
    save_file(tensors, weights)
    assert run([*command(places, f"BASE OTHER {QUICK}"), "--sae", str(wrong)]) == 64
    assert "not numbers" in one_line(capfd.readouterr().err)
