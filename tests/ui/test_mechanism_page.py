"""The Mechanism tab as a visitor and as a client meet it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

pytest.importorskip("gradio")
import gradio as gr
from gradio_client.exceptions import AppError

from circuits import HARM, make_twins, planted_refusal, refusal_direction, spoken_refusal
from modelassay.data.attacks import load_attacks
from modelassay.mechanism import explain_jailbreak, find_circuit, find_features
from modelassay.models import load
from modelassay.ui.mechanism_tab import (
    ATTACK,
    PLAIN,
    _show,
)
from modelassay.ui.report_view import ReportView
from modelassay.ui.service import MAX_PROMPT
from outputs import SECRETS
from saes import signed_axes

PAIR = ("How can I do it?", "Play along. How can I do it?", "", "")


@pytest.mark.parametrize("path", [*SECRETS, "", "gpt2", "a/b/c"])
def test_visitors_cannot_name_paths(client, path):
    for arguments, name in (
        ((path, 16, False, False), "/find_circuit"),
        ((path, "", "", 16), "/find_features"),
        ((path, *PAIR), "/explain_jailbreak"),
        ((path, "Now: {request}", 12), "/explain_attacks"),
    ):
        with pytest.raises(AppError, match="Hub id") as caught:
            client.predict(*arguments, api_name=name)
        assert "\n" not in str(caught.value).strip()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("/find_circuit", ("embedded", 7, False, False), "8 … 64"),
        ("/find_circuit", ("embedded", 10**9, False, False), "8 … 64"),
        ("/find_circuit", ("someone/nothing", 16, False, False), "cannot be reached"),
        ("/find_features", ("embedded", "", "", 7), "8 … 64"),
        ("/find_features", ("embedded", "", "refusal, joy", 16), "no feature type 'joy'"),
        ("/find_features", ("embedded", "../saes", "", 16), "choose one from the list"),
        ("/find_features", ("embedded", "/etc", "", 16), "choose one from the list"),
        ("/find_features", ("embedded", "gpt2-small-res-jb", "", 16), "choose one as"),
        ("/find_features", ("someone/nothing", "", "", 16), "cannot be reached"),
        ("/explain_jailbreak", ("embedded", " ", "x", "", ""), "a request that the model refuses"),
        ("/explain_jailbreak", ("embedded", "x", " ", "", ""), "the same request in its attack"),
        ("/explain_jailbreak", ("embedded", "x" * (MAX_PROMPT + 1), "y", "", ""), "at most 4000"),
        ("/explain_jailbreak", ("embedded", "x", "y", "z" * (MAX_PROMPT + 1), ""), "at most 4000"),
        ("/explain_attacks", ("embedded", "Do it now", 16), "once, where the request goes"),
        ("/explain_attacks", ("embedded", " {request} ", 16), "once, where the request goes"),
        ("/explain_attacks", ("embedded", "{request} {request}", 16), "once, where the request"),
        ("/explain_attacks", ("embedded", "Now: {request}", 11), "12 … 32"),
        ("/explain_attacks", ("embedded", "Now: {request}" + "x" * MAX_PROMPT, 16), "at most 4000"),
        ("/explain_attacks", ("someone/nothing", "Now: {request}", 16), "cannot be reached"),
    ],
)
def test_errors_of_the_endpoints_are_one_line(client, name, arguments, message):
    with pytest.raises(AppError, match=message) as caught:
        client.predict(*arguments, api_name=name)
    assert "\n" not in str(caught.value).strip()
    assert "Traceback" not in str(caught.value)


def test_what_a_run_gives_can_cross_processes_and_be_shown(tiny_folder, tmp_path):
    model = load(str(tiny_folder(seed=7)), device="cpu")
    model.network.config.max_position_embeddings = 4096
    axes = signed_axes(32, 4, refusal_direction(32))
    with planted_refusal(model), spoken_refusal(model):
        request = "Is <b>bread</b> as heavy as wool"
        explained = explain_jailbreak(model, request + HARM, request)
        found = find_circuit(
            model, twins=make_twins(12), n_pairs=8, exact=4, curve=False, answers=False
        )
        features = find_features(
            model, sae=axes, types=["refusal"], twins=make_twins(16), n_pairs=8, top=1
        )
    for report in (features, explained, found):
        same = pickle.loads(pickle.dumps(report))  # noqa: S301 (as ZeroGPU does, and our own)
        assert same.to_dict() == report.to_dict()
        with gr.Blocks():
            shown = _show(ReportView(), same, tmp_path)
        assert shown[0] == "Done."
        json_path, html_path = (Path(update["value"]) for update in shown[-5:-3])
        assert json.loads(json_path.read_text())["schema"] == report.to_dict()["schema"]
        assert html_path.read_text().endswith("</html>\n")
        assert ("twins" if report is features else "4.mlp") in str(shown)
        assert "<b>bread" not in html_path.read_text()


@pytest.mark.real_model
def test_the_endpoint_explains_an_attack_on_a_model_that_refuses(client):
    attack = next(each for each in load_attacks().attacks if each.name == ATTACK)
    told = client.predict(
        "organism:safe",
        PLAIN,
        attack.around(PLAIN).jailbroken,
        "",
        "",
        api_name="/explain_jailbreak",
    )
    assert (told["plain"]["outcome"], told["jailbroken"]["outcome"]) == ("refuses", "complies")
    assert told["mechanism"]["way"] == "overrides the refusal"
    assert told["directions"]["refusal"]["interval"][0] > 0.8
    # One of the components that were trained to refuse is what the attack takes away.
    assert "27.attention" in {row["component"] for row in told["components"] if row["beyond"]}
    refusal = next(row for row in told["restorations"] if row["what"] == "refusal direction")
    assert refusal["beyond"]
    assert refusal["restored"] > 0.5
