"""Tables of Hub data sets: the real datasets client against a real server on this machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from loopback_hub import LoopbackHub

READ_ALL = """
import json
from modelassay.hub import open_rows
for stream in (True, False):
    for name in ("some/cells", "some/pictures", "some/lines"):
        print(json.dumps([row for _, row in open_rows(name, stream=stream)]))
"""
TEXT = {"dtype": "string", "_type": "Value"}
PICTURES = json.dumps({"info": {"features": {"image": {"_type": "Image"}, "prompt": TEXT}}})


def test_cells_of_hub_tables_stay_as_they_are_written(tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    picture = pa.array([{"bytes": b"no picture", "path": None}], kind)
    table = pa.table({"image": picture, "prompt": ["a"]})
    table = table.replace_schema_metadata({"huggingface": PICTURES})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    with LoopbackHub() as hub:
        files = {"train.csv": b"prompt,response\nNobody?,None\nBond?,007\nPrice?,3.10\n"}
        hub.add_repo("datasets", "some/cells", files)
        hub.add_repo("datasets", "some/pictures", {"train.parquet": buffer.getvalue()})
        hub.add_repo("datasets", "some/lines", {"train.jsonl": b'{"a": [{"b": "1"}]}\n'})
        env = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path),
        }
        run = subprocess.run(
            [sys.executable, "-c", READ_ALL],
            env=env, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    read = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["response"] for row in read[0]] == ["None", "007", "3.10"]
    assert read[1:3] == [[{"prompt": "a"}], [{"a": [{"b": "1"}]}]]
    assert read[3:] == read[:3]
    assert "Left out of some/pictures, as no text: image." in run.stderr
