"""Responses that are kept."""

from __future__ import annotations


def test_answers_are_kept_and_made_once(monkeypatch, tiny, tmp_path):
    from types import SimpleNamespace

    from modelassay.reading import generation

    asked = []

    def generate(_model, prompts, *, max_new_tokens):
        asked.append(len(prompts))
        return [SimpleNamespace(text=f" answer {max_new_tokens}") for _ in prompts]

    monkeypatch.setattr(generation, "generate_greedy", generate)
    prompts = [f"question {i}" for i in range(40)]
    path = tmp_path / "kept" / "answers.json"

    def kept(questions):
        return generation.kept_responses(tiny, questions, path, max_new_tokens=5)

    assert kept(prompts) == ["answer 5"] * 40
    assert kept([*prompts, "one more"]) == ["answer 5"] * 41
    assert asked == [32, 8, 1]
    path.write_text("{")
    assert kept(prompts[:1]) == ["answer 5"]
