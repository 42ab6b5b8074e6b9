"""Artifacts on the page: visitors see what is shipped or on the Hub; the own machine does more."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio")
from gradio_client.exceptions import AppError

from modelassay.probes import PROBES, push_probe, store_probe
from outputs import SECRETS
from tiny import probe_for


@pytest.mark.parametrize(
    "kind", ["baseline", "probe", "classifier", "sae", "calibration", "monitor", "report"]
)
def test_every_kind_is_listed_and_shown(client, kind, tmp_path, monkeypatch):
    rows = client.predict(kind, api_name="/list_artifacts")
    assert {row["source"] for row in rows} == {"shipped"}
    shown = client.predict(kind, rows[0]["name"], api_name="/show_artifact")
    assert shown["origin"]["source"] == "shipped"
    assert shown["remarks"] == []
    for path in (*SECRETS, "baselines", "probes/embedded", "", "a/b/c"):
        with pytest.raises(AppError, match="choose one from the list") as caught:
            client.predict(kind, path, api_name="/show_artifact")
        assert "\n" not in str(caught.value).strip()
    with pytest.raises(AppError, match="switched off"):
        client.predict(kind, "", "", api_name="/search_artifacts")
    with pytest.raises(AppError, match="Unknown kind"):
        client.predict("file", api_name="/list_artifacts")


def test_the_host_s_own_artifacts_are_not_shown(client, tmp_path, monkeypatch, tiny):
    monkeypatch.setenv("MODELASSAY_PROBES", str(tmp_path))
    probe = probe_for(tiny(), name="secret")
    store_probe(probe.record, probe.heads)
    names = [row["name"] for row in client.predict("probe", api_name="/list_artifacts")]
    assert "secret" not in names
    for reference in ("secret", probe.record.model.id):
        with pytest.raises(AppError, match="is not a probe"):
            client.predict("probe", reference, api_name="/show_artifact")


@pytest.mark.parametrize(
    ("allowed", "space", "verbs"),
    [("0", "", False), ("1", "someone/space", False), ("1", "", True)],
)
def test_only_one_s_own_machine_keeps_deletes_and_pushes(monkeypatch, allowed, space, verbs):
    from modelassay.ui import build_app

    monkeypatch.setenv("MODELASSAY_ALLOW_LOCAL", allowed)
    monkeypatch.setenv("SPACE_ID", space)
    buttons = {
        block.value for block in build_app().blocks.values() if type(block).__name__ == "Button"
    }
    assert ({"Pull", "Delete", "Push"} <= buttons) is verbs
    assert (not {"Pull", "Delete", "Push"} & buttons) is not verbs


def test_one_s_own_page_pulls_pushes_and_deletes(hub, monkeypatch, tmp_path, tiny):
    from modelassay.ui import build_app

    monkeypatch.setenv("MODELASSAY_ALLOW_LOCAL", "1")
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.setenv("MODELASSAY_PROBES", str(tmp_path / "own"))
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.add_writer("hf_mine", "alice")
    push_probe(probe_for(tiny(), name="mine"), "alice/probes", token="hf_mine")
    app = build_app()
    act = next(f.fn for f in app.fns.values() if getattr(f.fn, "__name__", "") == "act")
    said, rows = act("Pull", "probe", "alice/probes:mine", "", False)
    assert "Kept mine" in said
    assert ["mine", "local"] in [row[:2] for row in rows]
    assert PROBES.find("mine").origin.author == "alice"
    said, _ = act("Push", "probe", "mine", "alice/more", False)
    assert "alice/more@" in said
    said, rows = act("Delete", "probe", "mine", "", False)
    assert "Deleted mine" in said
    assert "mine" not in [row[0] for row in rows]
    for verb, name in (("Pull", "../x"), ("Delete", "embedded"), ("Push", "nothing")):
        said, _ = act(verb, "probe", name, "alice/more", False)
        assert said
        assert "\n" not in said
