"""Every kind of artifact has every verb: the same tests run over all of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelassay.artifacts import Store
from modelassay.artifacts.kind import ORIGIN_FILE
from modelassay.classifier import CLASSIFIERS
from modelassay.cli.main import run
from modelassay.diff import CALIBRATIONS
from modelassay.errors import InputError, UnavailableError
from modelassay.files.atomic import locked
from modelassay.files.provenance import file_hash
from modelassay.monitors import MONITORS
from modelassay.probes import PROBES
from modelassay.reports import REPORTS
from modelassay.sae import SAES
from modelassay.verify import BASELINES
from outputs import one_line

MINE, STRANGER = "hf_mine", "hf_stranger"
MODEL = "owner/tiny"


@dataclass(frozen=True)
class Made:
    """A kind, one that is shipped, and where its record names the model."""

    store: Store[Any]
    shipped: str
    model: tuple[str, ...]
    heavy: str | None
    """The file with the numbers, where the record is not all."""
    agree: Callable[[Path, dict[str, Any]], None] | None = None
    """Lets that file tell of the same model as the record, where it must."""

    @property
    def has_name(self) -> bool:
        return "name" in self.store.kind.record.model_fields

    def write(self, folder: Path, name: str = "mine", model_id: str = MODEL) -> Path:
        """One of another name and model, with the numbers of the shipped one."""
        folder.mkdir(parents=True, exist_ok=True)
        source = self.store.shipped_folder() / self.shipped
        for file in (self.store.kind.record_file, "cfg.json", self.heavy):
            if file is not None and (source / file).is_file():
                shutil.copyfile(source / file, folder / file)
        record = folder / self.store.kind.record_file
        values = json.loads(record.read_text(encoding="utf-8"))
        place = values
        for key in self.model[:-1]:
            place = place[key]
        place[self.model[-1]] = model_id
        if self.has_name:
            values["name"] = name
        if self.agree is not None:
            self.agree(folder, values)
        record.write_text(json.dumps(values), encoding="utf-8")
        return folder

    def keep(self, name: str = "mine", **options: Any) -> Path:
        return self.store.save(lambda folder: self.write(folder, name), name, **options)


def agree_in_report(folder: Path, record: dict[str, Any]) -> None:
    """Has a kept report tell of its record's model."""
    path = folder / "content.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["values"]["model"] |= {"id": record["model"]["id"], "adapter": None}
    path.write_text(json.dumps(content), encoding="utf-8")
    record["content_sha256"] = file_hash(path)


MADE = {
    made.store.kind.command: made
    for made in (
        Made(BASELINES, "embedded", ("model", "id"), "vectors.safetensors"),
        Made(PROBES, "embedded", ("model", "id"), "probe.safetensors"),
        Made(CLASSIFIERS, "embedded", ("base", "id"), "classifier.safetensors"),
        Made(SAES, "embedded", ("model", "id"), "sae_weights.safetensors"),
        Made(CALIBRATIONS, "organism-safe", ("base",), None),
        Made(MONITORS, "organism-safe", ("model", "id"), "monitor.safetensors"),
        Made(REPORTS, "scan-organism-safe", ("model", "id"), "content.json", agree_in_report),
    )
}


@pytest.fixture(params=list(MADE))
def made(request, tmp_path, monkeypatch) -> Made:
    """Each kind in turn, with an empty store of the user's own."""
    found = MADE[request.param]
    monkeypatch.setenv(found.store.kind.variable, str(tmp_path / "own"))
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MODELASSAY_TRUSTED", raising=False)
    return found


@pytest.fixture
def site(hub):
    """A Hub on which alice and mallory have accounts."""
    hub.add_writer(MINE, "alice")
    hub.add_writer(STRANGER, "mallory")
    return hub


def files_of(made: Made, folder: Path, name: str = "mine") -> dict[str, bytes]:
    made.write(folder, name)
    return {f"{made.store.kind.folder}/{name}/{f.name}": f.read_bytes() for f in folder.iterdir()}


# --- on this machine ------------------------------------------------------------------------------


def test_shipped_and_own_ones_are_listed(made):
    made.keep()
    found = {each.name: each.origin.source for each in made.store.list()}
    assert (found[made.shipped], found["mine"]) == ("shipped", "local")
    assert next(iter(found.values())) == "shipped"
    assert "mine" not in [each.name for each in made.store.list(own=False)]


def test_what_is_no_whole_one_is_not_listed(made, tmp_path):
    own = tmp_path / "own"
    made.keep()
    for name in (".partial-mine-x", ".replaced-mine", ".deleted-mine"):
        made.write(own / name)  # what a killed run leaves
    (own / "broken").mkdir()
    (own / "broken" / made.store.kind.record_file).write_text("{", encoding="utf-8")
    (own / "empty").mkdir()
    (own / "a file").write_text("mine", encoding="utf-8")
    assert [each.name for each in made.store.list() if each.origin.source == "local"] == ["mine"]


def test_it_is_found_by_name_folder_record_and_model(made, tmp_path):
    folder = made.keep()
    elsewhere = made.write(tmp_path / "elsewhere", "other", "owner/other")
    record = elsewhere / made.store.kind.record_file
    for reference, source in {
        "mine": "local", str(folder): "folder", MODEL: "local",
        str(elsewhere): "folder", str(record): "folder", made.shipped: "shipped",
    }.items():  # fmt: skip
        found = made.store.find(reference)
        assert found.origin.source == source, reference
        assert made.store.kind.check(found.folder)
    assert made.store.find(MODEL).name == "mine"
    assert made.store.of_model("nobody/x") is None
    with pytest.raises(InputError, match="no revisions"):
        made.store.find("mine", revision="main")


@pytest.mark.parametrize("bad", ["nothing-here", "../own", "/no/such", "", "~nobody/x", "x" * 5000])
def test_what_is_nowhere_is_said_in_one_line(made, bad):
    with pytest.raises(InputError, match=rf"^No {made.store.kind.noun} ") as caught:
        made.store.find(bad)
    assert "\n" not in str(caught.value)


def test_a_folder_that_was_renamed_is_said(made, tmp_path):
    made.keep()
    (tmp_path / "own" / "mine").rename(tmp_path / "own" / "yours")
    if not made.has_name:  # the folder is the name
        assert made.store.find("yours").name == "yours"
        return
    assert "yours" not in [each.name for each in made.store.list()]
    with pytest.raises(InputError, match="another name"):
        made.store.find("yours")
    assert made.store.of_model(MODEL) is None


def test_an_own_one_cannot_pass_for_a_shipped_one(made):
    made.keep(made.shipped)
    assert made.store.find(made.shipped).origin.source == "shipped"
    assert [each.name for each in made.store.list()].count(made.shipped) == 1


def test_saving_replaces_with_force_only_and_only_its_kind(made, tmp_path):
    target = made.keep()
    with pytest.raises(InputError, match="exists already; pass --force"):
        made.keep()
    assert made.keep(force=True) == target
    for name, also in (("thesis", False), ("both", True), ("nothing", False)):
        other = tmp_path / name
        if also:
            made.write(other)
        other.mkdir(exist_ok=True)
        if name != "nothing":
            (other / "thesis.txt").write_text("years of work", encoding="utf-8")
        with pytest.raises(InputError, match=f"not an? {made.store.kind.noun}; give a new folder"):
            made.keep(out=other, force=True)
        assert name == "nothing" or (other / "thesis.txt").exists()
    with pytest.raises(InputError, match="cannot name"):
        made.keep("../evil")
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["mine"]


def test_a_failed_save_leaves_the_old_one(made):
    folder = made.keep()

    def fail(partial: Path) -> None:
        made.write(partial, "mine", "owner/other")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        made.store.save(fail, "mine", force=True)
    assert made.store.find("mine").model_id == MODEL
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]


def test_one_that_is_being_written_is_left_alone(made, tmp_path):
    from threading import Thread

    failures: list[Exception] = []

    def try_it(action: Callable[[], object]) -> None:
        try:
            action()
        except UnavailableError as error:
            failures.append(error)

    made.keep()
    with locked(tmp_path / "own" / "mine"):
        for action in (lambda: made.keep(force=True), lambda: made.store.delete("mine")):
            thread = Thread(target=try_it, args=(action,))
            thread.start()
            thread.join()
    assert len(failures) == 2
    assert made.store.find("mine").name == "mine"


def test_only_own_ones_are_deleted(made, tmp_path):
    made.keep()
    with pytest.raises(InputError, match="comes with modelassay"):
        made.store.delete(made.shipped)
    for bad in ("../own", "nothing", str(tmp_path / "own" / "mine"), ""):
        with pytest.raises(InputError, match="in your store"):
            made.store.delete(bad)
    assert not made.store.delete("mine").exists()
    assert list((tmp_path / "own").iterdir()) == []


def test_oversized_files_are_refused(made, monkeypatch):
    made.keep()
    for file in (made.store.kind.record_file, made.heavy):
        if file is not None:
            with monkeypatch.context() as patch:
                patch.setitem(made.store.kind.files, file, 10)
                with pytest.raises(InputError, match="larger than"):
                    made.store.find("mine")


# --- on the Hub -----------------------------------------------------------------------------------


def test_what_was_pushed_is_searched_shown_and_pulled(site, made, tmp_path):
    store, repo = made.store, "alice/things"
    pushed = store.push(store.open(made.write(tmp_path / "one" / "mine")), repo, token=MINE)
    assert pushed.pull_request is None
    (listed,) = store.search()
    assert (listed.repo_id, listed.models, listed.revision) == (
        repo,
        ("owner--tiny",),
        pushed.commit,
    )
    assert store.search(model=MODEL, author="alice")
    assert not store.search(model="other/model")
    assert not store.search(author="bob")
    files = site.repos["datasets", repo].commits[pushed.commit]
    table = f"{store.kind.folder}/mine/{store.kind.table_file}"
    assert table in files
    card = files["README.md"].decode()
    assert "license: cc0-1.0" in card
    assert f"{store.kind.folder}/*/{store.kind.table_file}" in card

    reference = f"{repo}:mine@{pushed.commit}"
    shown = store.show(reference)
    assert shown.record == store.open(tmp_path / "one" / "mine").record
    fetched = {r.path.rpartition("/")[2] for r in site.log if f"/{store.kind.folder}/" in r.path}
    assert fetched == {store.kind.record_file}
    assert str(store.find(reference).origin) == f"{reference} by alice"

    pulled = store.pull(reference)
    assert pulled.folder == tmp_path / "own" / "mine"
    assert {path.name for path in pulled.folder.iterdir()} <= {*store.kind.files, ORIGIN_FILE}
    again = store.find("mine")
    origin = again.origin
    assert (origin.source, origin.author, origin.revision) == ("local", "alice", pushed.commit)
    assert again.remarks == pulled.remarks
    assert "by alice, the model by owner; anybody can publish" in again.remarks[0]
    assert again.to_dict()["origin"]["author"] == "alice"
    with pytest.raises(InputError, match="--force"):
        store.pull(reference)
    store.pull(reference, force=True)
    for text in ("{", '{"author": ["x"]}'):
        (pulled.folder / ORIGIN_FILE).write_text(text, encoding="utf-8")
        assert store.find("mine").origin.author == "an unknown author"


@pytest.mark.parametrize(
    ("model_id", "trusted", "words"),
    [
        (MODEL, "bob, alice", "by alice, whom you trust (MODELASSAY_TRUSTED)"),
        ("alice/tiny", "", "by alice, who publishes the model"),
        ("tiny", "", "the model by nobody on the Hub"),
    ],
)
def test_whom_one_trusts_is_said(site, made, tmp_path, monkeypatch, model_id, trusted, words):
    monkeypatch.setenv("MODELASSAY_TRUSTED", trusted)
    one = made.store.open(made.write(tmp_path / "one" / "mine", model_id=model_id))
    assert one.remarks == ()
    made.store.push(one, "alice/things", token=MINE)
    assert words in made.store.show("alice/things").remarks[0]


def test_a_pull_request_is_said_to_be_anybody_s(site, made, tmp_path):
    store = made.store
    store.push(store.open(made.write(tmp_path / "one" / "mine")), "alice/things", token=MINE)
    evil = store.open(made.write(tmp_path / "evil", "evil"))
    proposed = store.push(evil, "alice/things", create_pr=True, token=STRANGER)
    assert proposed.pull_request
    with pytest.raises(InputError, match=f"no {store.kind.noun} 'evil'"):
        store.pull("alice/things:evil")
    for revision in ("refs/pr/1", proposed.commit):
        found = store.show("alice/things:evil", revision=revision)
        assert "pull request by anybody" in found.remarks[0]
    with pytest.raises(UnavailableError):
        store.push(evil, "alice/things", token=STRANGER)


def test_strangers_files_are_looked_over(site, made, tmp_path):
    store, folder = made.store, made.store.kind.folder
    files = files_of(made, tmp_path / "one" / "mine")
    record = f"{folder}/mine/{store.kind.record_file}"
    site.add_repo("datasets", "m/more", {**files, f"{folder}/mine/evil.pkl": b"x", "evil.py": b"x"})
    site.add_repo("datasets", "m/none", {"README.md": b"nothing"})
    site.add_repo("datasets", "m/up", {f"{folder}/../x/{store.kind.record_file}": b"{}"})
    site.add_repo(
        "datasets", "m/two", {f"{folder}/{n}/{store.kind.record_file}": b"{" for n in "ab"}
    )
    site.add_repo("datasets", "m/broken", {**files, record: b"{"})
    most = store.kind.files[made.heavy or store.kind.record_file]
    if most < 100_000_000:
        large = {
            **files,
            f"{folder}/mine/{made.heavy or store.kind.record_file}": b"0" * (most + 1),
        }
        site.add_repo("datasets", "m/large", large)
        site.log.clear()
        with pytest.raises(InputError, match="larger than"):
            store.pull("m/large")
        assert not any("/resolve/" in request.path for request in site.log)
    for repo, words in {
        "m/none": f"holds no {store.kind.noun}", "m/up": f"holds no {store.kind.noun}",
        "m/two": "choose one as m/two:NAME from a, b", "m/broken": "not a valid",
        "m/nothing": "No data set",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=words) as caught:
            store.pull(repo)
        assert "\n" not in str(caught.value)
    site.log.clear()
    pulled = store.pull("m/more")
    assert {path.name for path in pulled.folder.iterdir()} <= store.kind.own_files
    assert not any("evil" in request.path for request in site.log if "/resolve/" in request.path)


def test_what_was_tampered_with_is_not_kept(site, made, tmp_path):
    files = files_of(made, tmp_path / "one" / "mine")
    if made.heavy is not None:
        path = f"{made.store.kind.folder}/mine/{made.heavy}"
        changed = bytearray(files[path])
        changed[-1] ^= 1
        site.add_repo("datasets", "m/changed", {**files, path: bytes(changed)})
        with pytest.raises(InputError, match="is not the file that"):
            made.store.pull("m/changed")
    if made.has_name:
        moved = {path.replace("/mine/", "/Llama/"): data for path, data in files.items()}
        site.add_repo("datasets", "m/moved", moved)
        with pytest.raises(InputError, match="another name"):
            made.store.pull("m/moved")
    shipped = files_of(made, tmp_path / "two", made.shipped)
    site.add_repo("datasets", "m/shipped", shipped)
    with pytest.raises(InputError, match="comes with modelassay"):
        made.store.pull("m/shipped")
    assert not (tmp_path / "own").exists()


def test_what_was_fetched_is_found_without_the_hub(site, made, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    store = made.store
    store.push(store.open(made.write(tmp_path / "one" / "mine")), "alice/things", token=MINE)
    store.find("alice/things")
    site.close()
    assert store.find("alice/things:mine").name == "mine"
    with pytest.raises(UnavailableError, match="cannot be reached"):
        store.search()


# --- the commands ---------------------------------------------------------------------------------


def test_every_verb_is_a_command(site, made, tmp_path, capfd):
    command = made.store.kind.command

    def said(*arguments: str, code: int = 0) -> str:
        assert run([command, *arguments]) == code
        return capfd.readouterr().out.strip()

    folder = made.write(tmp_path / "mine")
    pinned = said("push", str(folder), "--repo", "alice/things", "--token", MINE)
    assert pinned.startswith("alice/things:mine@")
    proposed = said(
        "push", str(folder), "--repo", "alice/things", "--create-pr", "--token", STRANGER
    )
    assert "/discussions/1" in proposed
    (row,) = json.loads(said("search", "--model", MODEL, "--json"))
    assert (row["repo_id"], row["models"]) == ("alice/things", ["owner--tiny"])
    assert "alice/things" in said("search")
    assert run([command, "pull", pinned]) == 0
    out, err = capfd.readouterr()
    assert out.strip() == str(tmp_path / "own" / "mine")
    assert f"{pinned} by alice" in err
    assert "Careful" in err
    rows = json.loads(said("list", *(["mine"] if command == "sae" else []), "--json"))
    assert ("mine", "local") in [(each["name"], each.get("source")) for each in rows]
    assert "mine" in said("list", *(["mine"] if command == "sae" else []))
    values = json.loads(said("show", "mine", "--json"))
    assert values["origin"]["author"] == "alice"
    assert values["schema"] == made.store.find("mine").record.schema_
    assert said("show", "mine")
    said("delete", "mine")
    assert run([command, "delete", "mine"]) == 64
    assert "in your store" in one_line(capfd.readouterr().err)


def test_what_a_verb_was_called_still_works_and_says_so(site, made, tmp_path, capfd):
    command = made.store.kind.command
    folder = made.write(tmp_path / "mine")
    assert run([command, "info", str(folder)]) == 0
    said = f"`modelassay {command} info` is now `modelassay {command} show`."
    assert capfd.readouterr().err.strip() == said
    assert run([command, "push", str(folder), "alice/things", "--token", MINE]) == 0
    assert "--repo alice/things" in capfd.readouterr().err
    assert run([command, "push", str(folder)]) == 64
    assert "--repo OWNER/NAME" in one_line(capfd.readouterr().err)
    assert run([command, "push", str(folder), "alice/things", "more"]) == 64
    assert "extra argument (more)" in one_line(capfd.readouterr().err)
    assert run([command, "push", "--help"]) == 0
    usage = next(line for line in capfd.readouterr().out.splitlines() if "Usage" in line)
    assert usage.rstrip("} ").endswith("NAME")
