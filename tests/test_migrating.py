"""docs/migrating.md: every row of its tables does what it says."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from types import SimpleNamespace

import pytest

from chat_endpoint import SECRET, says, serve_chat
from hub_layouts import public_hub, worker_at
from modelassay import statistics
from predecessors import PAGE, Row, at_path, option_names, rows_of

pytest.importorskip("mcp")
pytest.importorskip("ams")
pytest.importorskip("sae_lens")
from agents import asks_then_reports
from predecessor_audits import AuditWorld

ROWS = rows_of()
REASONS = ("no need:", "withdrawn:", "unsafe:", "elsewhere:", "not yet:")


@pytest.fixture(scope="module")
def endpoint():
    with serve_chat() as found:
        agent, judge = asks_then_reports(2), says('{"unsafe": false, "refusal": false}')
        found.script.append(lambda body: agent(body) if "tools" in body else judge)
        yield found


@pytest.fixture(scope="module")
def world(tmp_path_factory, endpoint):
    """What all rows share: tiny models, files of the predecessors, a Hub and an endpoint."""
    home = tmp_path_factory.mktemp("migrating")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHE", "PROBES", "CLASSIFIERS", "BASELINES"):
            patch.setenv(f"MODELASSAY_{name}", str(home / "own" / name.lower()))
        patch.setenv("OPENAI_API_KEY", SECRET)
        patch.setenv("FT_AUDIT_BASE_DIR", str(home))
        patch.chdir(home)
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        patch.setattr(statistics, "N_RESAMPLES", 20)
        patch.setattr(statistics, "N_CLUSTER_RESAMPLES", 20)
        with public_hub() as hub, worker_at(hub, home / "hf") as on_the_hub:
            yield AuditWorld(home, endpoint.url, on_the_hub)


TOOLS = "MCP tools"


@pytest.fixture(scope="module")
def answers(world):
    """What was wrong with each call of a tool in both columns, made in the page's order."""
    rows = [row for row in ROWS if row.section == TOOLS]
    return world.call_all([call for row in rows for call in calls_of(row)])


def calls_of(row: Row) -> list[str]:
    """Their call of a tool and ours."""
    found = re.findall(r"`(\w+\([^`]*\))`", f"{row.theirs} {row.ours}")
    assert len(found) == 2, row
    return found


def lines_of(section: str) -> dict[str, set[int]]:
    """The lines of a section with the exit codes that each may have."""
    return {line: row.exits for row in ROWS if row.section == section for line in row.commands}


def is_used(option: str, row: Row, world: AuditWorld) -> bool:
    """Whether a line of the section that has run gives this option, which its command has."""
    wanted = shlex.split(option)
    for line, exits in lines_of(row.section).items():
        words = shlex.split(line)
        places = [i for i in range(len(words)) if words[i : i + len(wanted)] == wanted]
        if places and wanted[0] in option_names(words):
            if words[1] != "mcp":  # which the row of the line itself serves
                assert world.run(line)[0] in exits
            return True
    return False


@pytest.mark.parametrize(
    "row", ROWS, ids=[f"{row.section}: {row.theirs}".replace("`", "")[:90] for row in ROWS]
)
def test_row(row, world, endpoint, request):
    if row.ours == "none":
        assert row.note.startswith(REASONS), "a row without ours says why"
        return
    assert row.spans, "a row names a command, an option, a value or a call of ours"
    for span in row.spans:
        if "AUDIT_LOG" in span:
            request.getfixturevalue("answers")
        if span.startswith("modelassay mcp") and "--check-log" not in span:
            world.serve(span)
        elif span.startswith("modelassay "):
            code, _, error = world.run(span)
            assert code in row.exits, error[-2000:]
        elif span.startswith("-"):
            assert is_used(span, row, world), f"no line of the section gives {span}"
        elif span.startswith("."):
            assert any(
                has_path(world.run(line)[1], span)
                for line in lines_of(row.section)
                if "--json" in line
            ), f"no line of the section prints {span}"
        elif span.startswith("modelassay."):
            assert world.evaluate(span) is not None
        elif row.section == TOOLS:
            answers = request.getfixturevalue("answers")
            assert [answers[call] for call in calls_of(row)] == [None, None]
        elif span in ("FT_AUDIT_CONFIG", "FT_AUDIT_PROFILE"):
            world.serve_by_variables()
        elif span in ("FT_AUDIT_HTTP_TOKEN", "FASTMCP_PORT"):
            [world.serve(line) for line in lines_of(row.section) if "http" in line]
        elif span == "OPENAI_API_KEY":
            endpoint.asked.clear()
            world.ran.clear()
            [world.run(line) for line in lines_of(row.section) if "URL" in line]
            assert {key for _, key, _ in endpoint.asked} == {f"Bearer {SECRET}"}
        else:
            pytest.fail(f"nothing runs {span}")


def has_path(printed: str, path: str) -> bool:
    try:
        return bool(at_path(json.loads(printed), path))
    except (KeyError, TypeError, json.JSONDecodeError):
        return False


def test_rows_without_ours_are_counted():
    n = sum(row.ours == "none" for row in ROWS)
    assert f"{n} of {len(ROWS)} rows have **none**" in PAGE.read_text(encoding="utf-8")


def named(predecessor: str) -> str:
    return "\n".join(row.theirs for row in ROWS if row.predecessor == predecessor)


def test_nothing_of_ams_is_left_out(monkeypatch):
    """Its own parser lists its commands and options."""
    from ams import cli

    found: set[str] = set()

    def note(parser, *_args):
        for action in parser._actions:
            found.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                for name, each in action.choices.items():
                    found.add(name)
                    note(each)
            elif action.choices and not action.option_strings:
                found.update(action.choices)
        return SimpleNamespace(command=None, verbose=False)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", note)
    with pytest.raises((SystemExit, AttributeError)):
        cli.main()
    assert {"scan", "baseline", "create", "--concepts-file", "-V"} <= found
    told = named("ams-scanner")
    missing = {name for name in found if not re.search(rf"(?<![\w-]){re.escape(name)}\b", told)}
    assert missing <= {"-h", "--help", "--verbose"}


OPEN_CONSTITUTION = """
train_probe: model_id data_path layer out_dir epochs lr max_examples sample_seed no_chat_template
sweep_layers: layers epochs no_chat_template
guarded_generate: model_id probe_path config_path classifier_dir classifier_allow_threshold
  classifier_block_threshold skip_classifier prompt max_new_tokens no_chat_template
train_exchange_classifier: epochs batch_size learning_rate weight_decay max_length validation_size
  seed prefix_augment prefix_copies allow_threshold block_threshold logging_steps save_steps
  disable_tqdm show_tqdm resume_from_checkpoint output-dir
calibrate_exchange_classifier: out_path max_records max_safe_compliance_block_rate device
benchmark_latency: probe_path config_path classifier_dir max_new_tokens prompt out_path
benchmark_jailbreak: dataset limit_per_split max_examples example_offset only_split example_index
  seed pause_threshold probe_every_n_tokens smoothing_window guard_classifier_allow_threshold
  guard_classifier_block_threshold judge_allow_threshold judge_block_threshold judge_type
  openrouter_model openrouter_api_key_env openrouter_timeout_seconds openrouter_max_retries
  final_classifier_check teacher_data_path print_progress
prepare_training_data: pairwise_dataset_id single_response_dataset_id output_path summary_path
  dataset_version single_response_max_records no_single_response validation_fraction
  pairwise_splits single_response_splits keep_duplicates
build_three_class_classifier_data: primary_input_path extra_input_path keep_extra_duplicates
  extra_repeat
build_toxicchat_classifier_data: dataset_config split max_safe_compliance max_judged_model_outputs
  max_prompt_chars generator_model judge_model timeout_seconds max_retries
build_benign_recovery_data:
"""
"""Its scripts and their options."""
AUDITOR = """
ft-audit validate-config benchmark aggregate config suite out threshold runs-root fpr-target
ft-audit-mcp serve profile transport FT_AUDIT_CONFIG FT_AUDIT_PROFILE FT_AUDIT_HTTP_TOKEN
FASTMCP_HOST FASTMCP_PORT health create_audit_session begin_run close_audit_session
get_training_data_length view_training_data_sample grep_training_data query_models
run_prompt_suite get_top_features compare_top_features differential_feature_analysis
specific_feature_activations get_feature_details nearest_explained_neighbors
score_candidate_suite write_audit_report max_lines max_chars max_matches models gen
name results_dir seed score_method id_or_path revision trust_remote_code device_map dtype
attn_implementation training_jsonl enabled layer module_path_template output_selector
source path repo_id filename base_url model_id inference_base_url inference_secret_env_var
config_resolved.yaml tool_calls.jsonl decision.json aoa_dataset.json
"""
"""Its commands, options, variables, tools, arguments, keys of configs, and files."""


@pytest.mark.parametrize(
    ("predecessor", "names"),
    [("open-constitution", OPEN_CONSTITUTION), ("Fine-tune auditor", AUDITOR)],
)
def test_nothing_of_the_others_is_left_out(predecessor, names):
    told = named(predecessor).replace("_", "-")
    for name in re.findall(r"[\w.-]+", names):
        wanted = re.escape(name.replace("_", "-"))
        # A family of scripts is named once, in a heading.
        assert re.search(rf"(?<!\w){wanted}(?!\w)", told), name
