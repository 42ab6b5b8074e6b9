"""Baselines on a Hub: the unmodified clients against a real server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ast import literal_eval
from dataclasses import replace
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest
from huggingface_hub import constants

from modelassay.artifacts import slug
from modelassay.cli.main import run
from modelassay.errors import EXIT_BAD_INPUT, EXIT_UNAVAILABLE, AssayError
from modelassay.report import to_dict
from modelassay.report.html import fragment
from modelassay.verify import (
    BASELINES,
    Baseline,
    Kind,
    find_baseline,
    push_baseline,
    save_baseline,
    verify,
)
from modelassay.verify.baseline import INDEX_FILE, TABLE_FILE, VECTORS_FILE

MINE, READER, STRANGER = "hf_mine", "hf_reader", "hf_stranger"
REPO = "alice/baselines"


def renamed(baseline: Baseline, name: str, model_id: str = "owner/tiny") -> Baseline:
    model = baseline.index.model.model_copy(update={"id": model_id})
    index = baseline.index.model_copy(update={"name": name, "model": model})
    return replace(baseline, index=index)


def files_of(baseline: Baseline, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    save_baseline(baseline, folder)
    return {f"baselines/{baseline.name}/{f.name}": f.read_bytes() for f in folder.iterdir()}


@pytest.fixture
def site(hub):
    """A Hub with accounts: alice owns a namespace, the stranger another, the reader none."""
    hub.add_writer(MINE, "alice")
    hub.add_writer(STRANGER, "mallory")
    hub.tokens.add(READER)
    return hub


def failure(action, *arguments, **options) -> tuple[int, str]:
    with pytest.raises(AssayError) as caught:
        action(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert "hf_" not in str(caught.value)
    return caught.value.exit_code, str(caught.value)


def test_push_pull_and_verify(site, baseline, tiny_folder):
    pushed = push_baseline(baseline, REPO, token=MINE)
    again, origin = find_baseline(f"{REPO}@{pushed.commit}")
    assert again.index.model == baseline.index.model
    assert (origin.author, origin.revision, origin.source) == ("alice", pushed.commit, "hub")
    report = verify(str(tiny_folder()), REPO)
    assert report.verified is True
    assert report.to_dict()["baseline"]["revision"] == pushed.commit
    assert report.to_dict()["baseline"]["author"] == "alice"


def test_the_card_is_found(site, baseline, tmp_path):
    push_baseline(baseline, REPO, token=MINE)
    push_baseline(renamed(baseline, "second", "other/model"), REPO, token=MINE)
    files = site.repos["datasets", REPO].commits[site.repos["datasets", REPO].refs["main"]]
    assert set(files) == {
        "README.md",
        *(f"baselines/{n}/{f}" for n in ("tiny", "second")
          for f in (INDEX_FILE, VECTORS_FILE, TABLE_FILE)),
    }  # fmt: skip
    (found,) = BASELINES.search()
    assert found.repo_id == REPO
    assert set(found.models) == {"owner--tiny", "other--model"}
    assert BASELINES.search(model="other/model", author="alice")
    assert BASELINES.search(model="none/such") == []
    assert BASELINES.search(author="bob") == []
    card = files["README.md"].decode()
    assert "license: cc0-1.0" in card
    assert "config_name: concepts" in card


def test_load_dataset_opens_what_was_pushed(site, baseline, tmp_path):
    for name in ("tiny", "second"):
        push_baseline(renamed(baseline, name), REPO, token=MINE)
    program = f"import datasets; print(datasets.load_dataset({REPO!r})['train'].to_list())"
    environment = {
        **os.environ,
        "HF_ENDPOINT": site.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    rows = literal_eval(done.stdout)
    assert {row["baseline"] for row in rows} == {"tiny", "second"}
    assert {row["concept"] for row in rows} == {"harmful_content", "refusal_capability"}


def test_a_thousand_baselines_are_listed_in_one_request(site):
    card = b"---\ntags: [modelassay-baseline, baseline-of-owner--tiny]\n---\n"
    for i in range(1000):
        site.add_repo("datasets", f"owner{i}/baselines", {"README.md": card})
    site.log.clear()
    assert len(BASELINES.search()) == 1000
    assert len(site.log) == 1


def test_hashes_that_the_hub_states_are_enough(site, baseline, tiny_folder):
    push_baseline(baseline, REPO, token=MINE)
    files = {f.name: f.read_bytes() for f in tiny_folder().iterdir()}
    commit = site.add_repo("models", "bob/copy", files)
    report = verify("bob/copy", REPO, device="cpu")
    assert (report.verified, report.revision) == (True, commit)
    assert not any("model.safetensors" in request.path for request in site.log)
    other = {f.name: f.read_bytes() for f in tiny_folder(seed=1).iterdir()}
    site.add_repo("models", "bob/other", other)
    report = verify("bob/other", REPO, device="cpu")
    assert (report.verified, report.kind) == (False, Kind.OTHER_MODEL)
    assert any("model.safetensors" in request.path for request in site.log)


@pytest.mark.parametrize(
    ("model_id", "trusted", "words"),
    [
        ("owner/tiny", "", "Careful: the baseline is by alice, the model by owner"),
        ("owner/tiny", "bob, alice", "by alice, whom you trust"),
        ("alice/tiny", "", "by alice, who publishes the model"),
        ("tiny", "", "the model by nobody on the Hub"),
    ],
)
def test_whom_one_trusts_is_said(
    site, baseline, tiny_folder, monkeypatch, model_id, trusted, words
):
    monkeypatch.setenv("MODELASSAY_TRUSTED", trusted)
    push_baseline(renamed(baseline, "tiny", model_id), REPO, token=MINE)
    report = verify(str(tiny_folder()), REPO)
    assert report.verified is True
    assert words in " ".join(report.reasons)


def test_what_a_stranger_calls_a_model_runs_nowhere(site, baseline, tiny_folder):
    name = "<script>alert(1)</script>"
    push_baseline(renamed(baseline, "tiny", name), REPO, token=MINE)
    report = verify(str(tiny_folder()), REPO)
    assert report.baseline_model == name
    page = fragment(report) + "".join(map(str, to_dict(report)["reasons"]))
    assert "<script" not in fragment(report)
    assert "VERIFIED" in page


def test_a_card_of_somebody_s_own_keeps_its_words(site, baseline):
    card = b"---\nlicense: mit\ntags: [mine]\n---\n# My words\n"
    site.add_repo("datasets", REPO, {"README.md": card, "notes.txt": b"keep"})
    push_baseline(baseline, REPO, token=MINE)
    repo = site.repos["datasets", REPO]
    files = repo.commits[repo.refs["main"]]
    text = files["README.md"].decode()
    assert "# My words" in text
    assert "license: mit" in text
    assert "mine" in text
    assert "modelassay-baseline" in text
    assert files["notes.txt"] == b"keep"


def test_a_pull_request_is_readable_before_it_is_merged(site, baseline):
    push_baseline(renamed(baseline, "first"), REPO, token=MINE)
    pushed = push_baseline(baseline, REPO, create_pr=True, token=STRANGER)
    assert pushed.pull_request.endswith("/discussions/1")
    assert failure(find_baseline, f"{REPO}:tiny")[0] == EXIT_BAD_INPUT
    found, _ = find_baseline(f"{REPO}:tiny", revision="refs/pr/1")
    assert found.name == "tiny"


def test_a_commit_that_main_does_not_hold_is_pointed_out(site, baseline, tiny_folder):
    mine = renamed(baseline, "tiny", "alice/tiny")
    first = push_baseline(mine, REPO, token=MINE)
    assert "who publishes the model" in verify(str(tiny_folder()), REPO).reasons[-1]
    push_baseline(renamed(baseline, "evil", "alice/tiny"), REPO, create_pr=True, token=STRANGER)
    commit = site.repos["datasets", REPO].refs["refs/pr/1"]
    for revision in ("refs/pr/1", commit):
        report = verify(str(tiny_folder()), f"{REPO}:evil@{revision}")
        assert "pull request by anybody" in report.reasons[-1]
        assert report.baseline.on_main is False
    pinned = verify(str(tiny_folder()), f"{REPO}:tiny@{first.commit}")
    assert pinned.baseline.on_main is True


def test_what_was_listed_is_what_is_read(site, baseline, tiny_folder, tmp_path, monkeypatch):
    """Somebody pushes between the listing and the download."""
    push_baseline(baseline, REPO, token=MINE)
    files = {f.name: f.read_bytes() for f in tiny_folder().iterdir()}
    commit = site.add_repo("models", "bob/moving", files)
    evil = {f.name: f.read_bytes() for f in tiny_folder(seed=1).iterdir()}
    download = huggingface_hub.snapshot_download

    def late(repo_id, **options):
        if options["revision"] is None and repo_id == "bob/moving":
            site.add_commit("models", repo_id, evil)
        return download(repo_id, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", late)
    report = verify("bob/moving", REPO, device="cpu")
    assert (report.verified, report.revision) == (True, commit)


def test_nothing_but_the_baseline_is_fetched(site, baseline, tmp_path):
    files = files_of(baseline, tmp_path / "b")
    more = {
        f"baselines/x/{VECTORS_FILE}": b"\0" * 31_000_000,
        f"baselines/a/b/{VECTORS_FILE}": b"\0" * 1000,
        "evil.py": b"x",
    }
    site.add_repo("datasets", "mallory/more", files | more)
    assert find_baseline("mallory/more")[0].name == "tiny"
    fetched = {r.path.rpartition("/main/")[2] for r in site.log if "/resolve/" in r.path}
    assert {path.rpartition("/")[2] for path in fetched} == {INDEX_FILE, VECTORS_FILE}
    assert not any("baselines/x/" in path or "a/b" in path for path in fetched)


def test_pushes_at_once_lose_nothing(site, baseline):
    push_baseline(renamed(baseline, "zero"), REPO, token=MINE)
    names = [f"n{i}" for i in range(4)]
    pushers = [
        Thread(target=push_baseline, args=(renamed(baseline, n, f"o/{n}"), REPO),
               kwargs={"token": MINE})
        for n in names
    ]  # fmt: skip
    for pusher in pushers:
        pusher.start()
    for pusher in pushers:
        pusher.join()
    (found,) = BASELINES.search()
    assert set(found.models) == {"owner--tiny", *(f"o--{n}" for n in names)}
    for name in names:
        assert find_baseline(f"{REPO}:{name}")[0].name == name


def test_a_push_by_somebody_else_is_refused(site, baseline):
    push_baseline(baseline, REPO, token=MINE)
    for token in (STRANGER, READER):
        code, line = failure(push_baseline, baseline, REPO, token=token)
        assert code == EXIT_UNAVAILABLE
        assert "token" in line


def test_a_private_data_set_needs_its_token(site, baseline):
    push_baseline(baseline, REPO, private=True, token=MINE)
    assert find_baseline(REPO, token=MINE)[0].name == "tiny"
    code, line = failure(find_baseline, REPO, token=READER)
    assert (code, "No data set" in line) == (EXIT_BAD_INPUT, True)
    assert BASELINES.search(token=READER) == []


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, 69), (403, 69), (404, 64), (409, 69), (412, 69), (429, 69), (500, 69)],
)
def test_the_hub_s_errors_get_one_line(site, baseline, status, code, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    push_baseline(baseline, REPO, token=MINE)
    headers = {"X-Error-Code": "RepoNotFound"} if status == 404 else {}
    site.add_fault("/api/datasets", status=status, headers=headers)
    assert failure(find_baseline, REPO)[0] == code
    assert failure(push_baseline, baseline, REPO, token=MINE)[0] == code


def test_offline_what_was_pulled_still_verifies(site, baseline, tiny_folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    pushed = push_baseline(baseline, REPO, token=MINE)
    find_baseline(REPO)
    site.close()
    for reference in (REPO, f"{REPO}:tiny", f"{REPO}:tiny@{pushed.commit}"):
        assert verify(str(tiny_folder()), reference).verified is True
    code, line = failure(BASELINES.search)
    assert code == EXIT_UNAVAILABLE
    assert "cannot be reached" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, line = failure(BASELINES.search)
    assert code == EXIT_UNAVAILABLE
    assert verify(str(tiny_folder()), REPO).verified is True


def test_a_cut_download_is_taken_up_again(site, baseline, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
    push_baseline(baseline, REPO, token=MINE)
    site.add_fault(r"GET .*vectors.safetensors", times=1, cut_after=10_000)
    assert find_baseline(REPO)[0].name == "tiny"  # its sha256 was checked
    ranges = [r.headers.get("range") for r in site.log if "vectors.safetensors" in r.path]
    assert any(wanted and wanted.startswith("bytes=") for wanted in ranges)


def test_oversized_files_are_refused_before_they_are_fetched(site, baseline, tmp_path):
    files = files_of(baseline, tmp_path / "b")
    files[f"baselines/tiny/{VECTORS_FILE}"] = b"\0" * 31_000_000
    site.add_repo("datasets", "mallory/big", files)
    code, line = failure(find_baseline, "mallory/big")
    assert (code, "larger" in line) == (EXIT_BAD_INPUT, True)
    assert not any("/resolve/" in request.path for request in site.log)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"README.md": b"nothing"}, "holds no baseline"),
        ({"baselines/../x/baseline.json": b"{}"}, "holds no baseline"),
        ({"baselines/a/baseline.json": b"{}", "baselines/b/baseline.json": b"{}"}, "2 baselines"),
        ({"baselines/a/baseline.json": b"{"}, "not a valid baseline"),
    ],
)
def test_data_sets_without_a_usable_baseline(site, files, words):
    site.add_repo("datasets", "mallory/odd", files)
    code, line = failure(find_baseline, "mallory/odd")
    assert (code, words in line) == (EXIT_BAD_INPUT, True), line


def test_a_baseline_under_another_name_is_refused(site, baseline, tmp_path):
    files = files_of(baseline, tmp_path / "b")
    moved = {path.replace("/tiny/", "/Llama/"): data for path, data in files.items()}
    site.add_repo("datasets", "mallory/moved", moved)
    assert "another name" in failure(find_baseline, "mallory/moved")[1]


def test_the_commands(site, baseline, tmp_path, capsys, tiny_folder):
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_baseline(baseline, folder)
    assert run(["baseline", "push", str(folder), "--repo", REPO, "--token", MINE]) == 0
    pinned = capsys.readouterr().out.strip()
    assert run(["baseline", "search", "--json"]) == 0
    assert [row["repo_id"] for row in json.loads(capsys.readouterr().out)] == [REPO]
    assert run(["baseline", "pull", pinned]) == 0
    capsys.readouterr()
    assert run(["verify", str(tiny_folder()), "--against", "tiny", "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["baseline"]["author"] == "alice"
    assert report["baseline"]["revision"] == pinned.partition("@")[2]
    assert run(["baseline", "push", str(folder), "--repo", "nonsense"]) == EXIT_BAD_INPUT
    model = ["baseline", "push", str(tiny_folder()), "--repo", "alice/fresh", "--token", MINE]
    assert run([*model, "--quiet"]) == 0  # measured now
    (fresh,) = [found for found in BASELINES.search() if found.repo_id == "alice/fresh"]
    assert fresh.models == (slug(tiny_folder().name).lower(),)
