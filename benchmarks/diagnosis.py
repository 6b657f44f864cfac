"""How often a planted cause is found: `python -m benchmarks.diagnosis [--seeds 5] [--only TEXT] [--folder FOLDER]`.

Each case of `benchmarks.planted` has one known cause, or two, or none. Thresholds were set on cases with even numbers;
the figures that count are of the others, and of all with `--again`, which deals, splits and trains with other seeds.
Cases on Fashion-MNIST and MNIST need FEDJAX_SIM_DATA. With `--cost`, what a diagnosis costs beside separate commands.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from benchmarks.planted import CASES, Case
from fedjax_sim import use_cpu_devices
from fedjax_sim.diagnose import CAUSES, diagnose
from fedjax_sim.diagnose.found import MATTERS, NOISY
from fedjax_sim.experiment.config import load_config

NOTHING = "nothing"
AGAIN = ("data.seed=1", "training.seed=100")
STALLED = ("data.alpha=0.05",)  # what the embedded default is diagnosed with for its cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="with seeds that nothing was set on")
    parser.add_argument("--cost", action="store_true", help="time one diagnosis and separate runs instead")
    parser.add_argument("--only", default="", help="part of the names of cases")
    parser.add_argument("--folder", type=Path, help="where diagnoses are kept, to go on with")
    args = parser.parse_args()
    if args.cost:
        return cost(args.seeds)
    use_cpu_devices()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder, found = args.folder or Path(temporary), []
        for number, case in enumerate(CASES):
            if args.only in case.name and ("FEDJAX_SIM_DATA" in os.environ or "mnist" not in " ".join(case.settings)):
                case = case._replace(settings=(*case.settings, *(AGAIN if args.again else ())))
                ranked = examine(case, folder / f"{number:02}{'again' * args.again}", args.seeds)
                found.append((number, case, ranked))
    for half, name in ((0, "cases that thresholds were set on"), (1, "the other cases")):
        report(name, [(case, ranked) for number, case, ranked in found if number % 2 == half])
    confusion([(case, ranked) for _, case, ranked in found])


def examine(case: Case, folder: Path, seeds: int) -> list[str]:
    """The causes that are said to matter, the costliest first; where it is too noisy to tell, those that may."""
    folder.mkdir(parents=True, exist_ok=True)
    began, answer = time.perf_counter(), folder / "answer.json"
    if answer.exists():
        known = json.loads(answer.read_text(encoding="utf-8"))
        if known["settings"] == list(case.settings):
            return known["ranked"]
    result = diagnose(load_config(None, case.settings), folder / "runs", seeds=seeds, remedies=False)
    matter = [
        s for s in result.suspects if s.share is not None or (result.verdict == NOISY and s.alone.mean >= MATTERS)
    ]
    ranked = [suspect.name for suspect in matter]
    costs = ", ".join(f"{s.name} {100 * (s.share or s.alone).mean:.1f}" for s in matter)
    right = ranked[: len(case.planted)] == list(case.planted) or set(ranked[:2]) == set(case.planted)
    print(f"{'ok   ' if right or not (ranked or case.planted) else 'WRONG'} {case.name}: {result.verdict}, run "
          f"{result.run.mean:.1%} of {result.ceiling.mean:.1%}; {costs or NOTHING}; {result.runs} runs, "
          f"{result.programs} programs, {time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    answer.write_text(json.dumps({"settings": case.settings, "ranked": ranked, **result.plain()}), encoding="utf-8")
    return ranked


def cost(seeds: int) -> None:
    """Seconds of a diagnosis as a command, and of as many commands as it has runs, each as long as the run itself."""
    import subprocess

    with tempfile.TemporaryDirectory() as folder:
        given = [word for setting in STALLED for word in ("--set", setting)]
        command = [sys.executable, "-m", "fedjax_sim"]
        more = ["--seeds", str(seeds), "--no-remedies", "--folder", f"{folder}/diagnosis"]
        took = []
        for arguments in (["diagnose", *given, *more], *[["run", *given, "--set", f"output.folder={folder}"]] * 3):
            began = time.perf_counter()
            subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL)
            took.append(time.perf_counter() - began)
        found = json.loads((Path(folder) / "diagnosis" / "diagnosis.json").read_text(encoding="utf-8"))
    together, alone = took[0], sorted(took[1:])[1]
    print(f"{found['runs']} runs as {found['programs']} programs in {together:.0f} s; a run by itself {alone:.1f} s, "
          f"as many {found['runs'] * alone:.0f} s: {found['runs'] * alone / together:.1f} times as long")  # fmt: skip


def report(name: str, found: list[tuple[Case, list[str]]]) -> None:
    """Shares of the cases in which the planted cause is first, and among the first two."""
    single = [(case.planted[0], ranked) for case, ranked in found if len(case.planted) == 1]
    pairs = [(set(case.planted), ranked) for case, ranked in found if len(case.planted) == 2]
    healthy = [ranked for case, ranked in found if not case.planted]
    first = sum(ranked[:1] == [planted] for planted, ranked in single)
    second = sum(planted in ranked[:2] for planted, ranked in single)
    both = sum(set(ranked[:2]) == planted for planted, ranked in pairs)
    print(f"{name}: planted cause first in {first} of {len(single)}, among the first two in {second}; both of a "
          f"pair in {both} of {len(pairs)}; false alarms in {sum(map(bool, healthy))} of {len(healthy)} healthy "
          "controls")  # fmt: skip


def confusion(found: list[tuple[Case, list[str]]]) -> None:
    """A line for each planted cause: what was ranked first, and how often."""
    print("| planted | ranked first |\n| --- | --- |")
    for planted in [*(cause.name for cause in CAUSES), NOTHING]:
        firsts = Counter((ranked or [NOTHING])[0] for case, ranked in found
                         if (case.planted or (NOTHING,)) == (planted,))  # fmt: skip
        if firsts:
            print(f"| {planted} | {', '.join(f'{name} {count}' for name, count in firsts.most_common())} |")


if __name__ == "__main__":
    sys.exit(main())
