"""What is pushed to a Space, and what an image is built of."""

from __future__ import annotations

import pytest
import yaml

import container
import space


def test_a_space_holds_what_it_needs_and_nothing_that_lies_around(tmp_path):
    stray = space.ROOT / "src" / "modelassay" / "of-nobody.txt"
    stray.write_text("secret")
    try:
        folder = space.assemble(tmp_path / "space")
    finally:
        stray.unlink()
    assert not (folder / "src/modelassay/of-nobody.txt").exists()
    assert (folder / "examples/organisms/safe/adapter_model.safetensors").is_file()
    assert not (folder / "tests").exists()
    packages = (folder / "requirements.txt").read_text()
    assert "-e" not in packages.split()  # a Space sees this file alone when it installs
    names = [path.name for path in folder.rglob("*")]
    assert not [name for name in names if name in (".env", ".git", "token", "__pycache__")]


def test_the_image_and_its_services_are_closed(monkeypatch):
    container.check_files()
    steps = container.instructions()
    assert steps[0][0] == "FROM"
    assert ("USER", "visitor") in steps
    monkeypatch.setattr(container, "instructions", lambda: [("CMD", '["python"]')])
    with pytest.raises(SystemExit, match="root"):
        container.check_files()


def test_what_is_not_run_is_never_called_run(monkeypatch):
    monkeypatch.setattr(container, "docker_answers", lambda: False)
    monkeypatch.setattr("sys.argv", ["container.py", "--docker"])
    with pytest.raises(SystemExit, match="no Docker daemon answers here"):
        container.main()
    jobs = yaml.safe_load((space.ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    commands = [step.get("run") for step in jobs["deployment"]["steps"]]
    assert "python scripts/container.py --docker" in commands
    assert "python scripts/space.py" in commands
