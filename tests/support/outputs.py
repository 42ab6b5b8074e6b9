"""What users of the command line and of the page may and may not see."""

import sys

COMMAND = [sys.executable, "-c", "from modelassay.cli import main; main()"]
SECRETS = ("/etc/passwd", "/etc", "../..", "~", ".", "file:///etc/passwd", "C:\\", "src/modelassay")


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("modelassay: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]
