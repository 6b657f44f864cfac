"""One virtual environment per peer, with pinned versions: `python -m benchmarks.peers.environments [NAME ...]`."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

DEFAULT_FOLDER = Path(__file__).parents[2] / ".peers"
PYTHON = "3.11"

# Requirements installed together; where there are several groups, an earlier one keeps a later one from replacing it.
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "jax": (("jax==0.10.2", "jaxlib==0.10.2", "numpy==2.4.6"),),
    "torch": (("torch==2.13.0", "numpy==2.4.6"),),
    # FedJAX's last release calls functions of JAX that are gone from 0.6 on.
    "fedjax": (("fedjax==0.0.17", "jax==0.5.3", "jaxlib==0.5.3", "numpy==1.26.4", "dm-haiku==0.0.13"),),
    "flower": (("torch==2.13.0",), ("flwr[simulation]==1.41.0", "ray==2.55.1")),
    # The extra named pytorch would otherwise choose a build of PyTorch itself.
    "pfl": (("torch==2.13.0",), ("pfl==0.6.0",)),
}


def interpreter(folder: Path, name: str) -> Path:
    """The Python of one environment."""
    return folder / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _marker(name: str) -> str:
    return "\n".join(" ".join(group) for group in ENVIRONMENTS[name]) + "\n"


def is_ready(folder: Path, name: str) -> bool:
    """Whether the environment was made completely, with the present pins."""
    marker = folder / name / "pins.txt"
    return marker.is_file() and marker.read_text() == _marker(name)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise SystemExit(f"{' '.join(command)}: {errors[-1] if errors else 'no message'}")


def make(folder: Path, name: str, python: str) -> None:
    """Make one environment from nothing, its marker last."""
    shutil.rmtree(folder / name, ignore_errors=True)
    _run([python, "-m", "venv", str(folder / name)])
    for group in ENVIRONMENTS[name]:
        print(f"{name}: installing {' '.join(group)}", flush=True)
        _run([str(interpreter(folder, name)), "-m", "pip", "install", "--quiet", *group])
    (folder / name / "pins.txt").write_text(_marker(name))


def find_python(asked: str | None) -> str:
    """An interpreter of the pinned version, or an exit that says what is missing."""
    python = shutil.which(asked or f"python{PYTHON}") or (None if asked else sys.executable)
    if python is None:
        raise SystemExit(f"no interpreter at {asked}")
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    found = subprocess.run([python, "-c", show], capture_output=True, text=True).stdout.strip()
    if found != PYTHON:
        raise SystemExit(f"Python {PYTHON} is needed, {python} is {found or 'not runnable'}; name one with --python")
    return python


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.environments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)} (default: all)")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where to make them (default: .peers)")
    parser.add_argument("--python", help=f"a Python {PYTHON} (default: python{PYTHON} on the PATH)")
    args = parser.parse_args()
    if unknown := set(args.names) - set(ENVIRONMENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}")
    for name in args.names or ENVIRONMENTS:
        if is_ready(args.folder, name):
            print(f"{name}: ready in {args.folder / name}")
        else:
            make(args.folder, name, find_python(args.python))
            print(f"{name}: made in {args.folder / name}")


if __name__ == "__main__":
    main()
