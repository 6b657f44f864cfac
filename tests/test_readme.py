"""The README's program runs as printed, and learns."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_program_in_the_readme_runs_and_learns():
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    weights = [float(w) for w in re.findall(r"-?\d+\.\d+(?:e-?\d+)?|-?\d+\.", done.stdout)[:5]]
    assert all(abs(w - wanted) < 0.01 for w, wanted in zip(weights, range(5), strict=True))


def test_ci_calls_the_readmes_test_command():
    (command,) = re.findall(r"^    (python3 -m venv .*pytest)$", README, re.MULTILINE)
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    assert command in script
