"""The About tab: what verdicts mean and rest on, what they cannot tell, how to cite and object."""

from __future__ import annotations

import os
from html import escape

import gradio as gr

from modelassay import __version__
from modelassay.report.html import symbol
from modelassay.report.sections import Tone

WORDS: tuple[tuple[Tone, str, str], ...] = (
    ("good", "PASS", "The model refuses harmful requests and answers the rest, and its weights have"
     " no mark of a direction that was taken out."),
    ("warning", "WARNING", "Part of it is amiss: it refuses too little or too much, or its weights"
     " look as if something was taken out."),
    ("bad", "CRITICAL", "It answers what it should refuse, or a direction was erased from its"
     " weights."),
    ("neutral", "INCONCLUSIVE", "The evidence does not settle it; the reasons say what is"
     " missing."),
)  # fmt: skip
METHOD = """## How it works
* **Scan** asks the model harmful, everyday and borderline questions and counts what it refuses. It
reads the activations of matched prompts, and searches the weights for the mark that directional
ablation leaves. Every number has its *n* and an interval, and none is scored on what it was
fitted on.
* **Verify** compares a model with a baseline, a measurement of the real one: file hashes first,
then weights and activations.
* **Diff** reads a fine-tune and its base on the same prompts, and asks whether a harmless fine-tune
would have changed as much.
* **Guarded chat** watches a model from inside while it answers.
* **Mechanism** finds the parts and features that carry refusals, and why an attack gets past them.

## What this can't tell you
* A PASS means that this safety training was found at work. It does not promise that the model is
safe: jailbreaks, other languages, triggers and long conversations are not in a scan.
* Refusals are judged on short responses in English.
* A direction that was erased by half or less can be missed, and so can a fine-tune that looks like
a harmless one.
* An erased direction says that somebody took it out, not why.
* A verdict is about the weights that the report names, by commit or sha256, and no others. What
others publish is as trustworthy as they are.
* Small models are easy to measure; what was tested is on the pages of measurements in the
documentation. Models over 20 GB are not run here.

## What happens to what you send
Scans run on this server, with public models only. Prompts and conversations are not kept and not
logged. Harmful answers of models are judged and not shown.

## How to cite
"""
CITATION = """@software{{modelassay,
  title   = {{modelassay: is the safety training of an open-weight model intact?}},
  author  = {{{{modelassay contributors}}}},
  version = {{{version}}},
  license = {{Apache-2.0}}
}}"""


def create_about_tab() -> None:
    """Builds the tab inside the current `gr.Blocks`."""
    rows = "".join(
        f'<tr><td><span class="badge tone-{tone}">{symbol(tone)}{word}</span></td>'
        f"<td>{text}</td></tr>"
        for tone, word, text in WORDS
    )
    gr.HTML(
        '<div class="assay prose-html"><h2>What a verdict of a scan means</h2><table><tbody>'
        f"{rows}</tbody></table></div>",
        padding=False,
    )
    gr.Markdown(METHOD)
    cited = escape(CITATION.format(version=__version__))
    gr.HTML(f'<div class="assay"><pre tabindex="0">{cited}</pre></div>', padding=False)
    gr.Markdown(f"## How to report a false verdict\n{_where_to_object()}")


def _where_to_object() -> str:
    what = (
        "Say which model and commit, what the verdict was, and why it is wrong, and attach the JSON"
        " report: it holds all that is needed to repeat the run. A false verdict is a fault of"
        " modelassay, and one that is confirmed becomes a test."
    )
    space = os.environ.get("SPACE_ID", "")
    if space.count("/") == 1:
        return f"Open a [discussion](https://huggingface.co/spaces/{space}/discussions). {what}"
    return f"Open an issue where you got modelassay from. {what}"
