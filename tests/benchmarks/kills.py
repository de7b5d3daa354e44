"""Runs that are killed by `kill -9` again and again, and resumed each time; and two starts at once on one folder.

A third of the kills come while the program starts, a third while it trains, and a third in the middle of a save. After
every kill no process may be left, what was saved must be whole, and the run must go on from it. In the end its weights
and its metrics must be those of a run that nobody disturbed, bit for bit. The exit code says whether it is so.

    python -m tests.benchmarks.kills --kills 40                                            # one process
    python -m tests.benchmarks.kills --kills 40 --launcher torchrun                        # two, and their launcher
    python -m tests.benchmarks.kills --kills 20 --launcher torchrun --victim launcher      # the launcher alone
    python -m tests.benchmarks.kills --kills 20 --launcher torchrun --victim rank          # one of the two alone
    python -m tests.benchmarks.kills --starts 20                                           # two starts at once
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from safetensors import safe_open

from dlm.config import Config
from dlm.model.checkpoint import read_sidecar
from tests.support.launchers import ENVIRONMENT, LAUNCHERS
from tests.support.tiny_runs import back_to, describe, same, write

EVERY = 50
"""Steps between two checkpoints."""

FEW = 4
"""The most checkpoints that a start saves before it is killed."""

PATIENCE = 60.0
"""Seconds in which every process must be gone."""

HELD = re.compile(r"dlm.*: .* is being written by process (\d+) on \S+ since [^\n]*--run-dir")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--kills", type=int, default=0)
    what.add_argument("--starts", type=int, default=0)
    parser.add_argument("--launcher", choices=["torchrun", "ddp"], help="of two processes; without one it is one")
    parser.add_argument("--victim", choices=["all", "launcher", "rank"], default="all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.victim != "all" and not options.launcher:
        parser.error(f"--victim {options.victim} needs a --launcher")
    with tempfile.TemporaryDirectory(prefix="dlm-kills-") as name:
        folder = Path(name)
        if options.kills:
            Kills(folder, options.kills, options.launcher, options.victim, random.Random(options.seed)).run()
        else:
            start_twice(folder, options.starts, options.launcher)


@dataclass
class Start:
    """A run begun or resumed, in a session of its own, with what it printed."""

    process: subprocess.Popen[bytes]
    run: Path
    log: Path

    @classmethod
    def of(cls, config: Path, run: Path, launcher: str | None, *words: str) -> "Start":
        command = ["dlm", "train", str(config), "--run-dir", str(run), *words]
        if launcher:
            command = [*LAUNCHERS[launcher], "-m", *command]
        log = Path(tempfile.mkstemp(suffix=".log", dir=config.parent)[1])
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], env=ENVIRONMENT, start_new_session=True, stderr=errors
            )
        return cls(process, run, log)

    def told(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def finish(self) -> None:
        """Waits for the end, which must be a good one."""
        if self.process.wait():
            self.fail("a run that nobody killed did not come to its end")

    def fail(self, reason: str) -> None:
        for process in self.alive():
            process.kill()
        sys.exit(f"{reason}; exit code {self.process.poll()}, and it printed:\n{self.told()[-3000:]}")

    def wait_for(self, happened: Callable[[], object]) -> None:
        """Looks again and again until it happened; the run must not end before."""
        while not happened():
            if self.process.poll() is not None:
                self.fail("a run that nobody killed ended")
            time.sleep(0.001)

    def alive(self) -> list[psutil.Process]:
        """Every process of the run: those that name its folder, and those that such a one started."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                if str(self.run) in process.cmdline():
                    family = [process, *process.children(recursive=True)]
                    found |= {one.pid: one for one in family if one.status() != psutil.STATUS_ZOMBIE}
            except psutil.Error:
                continue
        return list(found.values())


@dataclass
class Kills:
    """One run, killed so many times."""

    folder: Path
    kills: int
    launcher: str | None
    victim: str
    draw: random.Random
    saving: int = 0
    slowest: float = 0.0
    torn: int = 0
    lost: int = 0

    def run(self) -> None:
        # A start that is killed takes less than FEW + 2 times EVERY steps.
        steps = EVERY * (FEW + 2) * (self.kills + 1)
        plan: Config = describe(self.folder, steps=steps, save_every=EVERY, validate_every=20 * EVERY, keep=2)
        config = write(plan, self.folder / "run.yaml")
        calm, killed = self.folder / "calm", self.folder / "killed"
        began = time.monotonic()
        Start.of(config, calm, self.launcher).finish()
        print(f"{steps} steps that nobody disturbed: {time.monotonic() - began:.0f} s", flush=True)
        for number in range(1, self.kills + 1):
            self.kill(number, Start.of(config, killed, self.launcher, *resumed(killed)))
        end = Start.of(config, killed, self.launcher, *resumed(killed))
        end.finish()
        identical = same(killed, calm, steps)
        print(
            f"{self.kills} kills of {self.victim}, {self.saving} in the middle of a save; none was left after "
            f"{self.slowest:.1f} s; checkpoints lost: {self.lost}, torn: {self.torn}; "
            f"bit-identical in the end: {identical}"
        )
        sys.exit(0 if identical and not self.lost and not self.torn else 1)

    def kill(self, number: int, start: Start) -> None:
        """Waits for the moment, kills, and checks what is left of processes and checkpoints."""
        moment, earlier = ("starting", "training", "saving")[number % 3], drafts(start.run)
        everyone: list[psutil.Process] = []
        if moment == "starting":
            time.sleep(self.draw.uniform(0.0, 8.0))
        else:
            goal = last(start.run) + EVERY * self.draw.randint(1, FEW)
            start.wait_for(lambda: last(start.run) >= goal)
            if moment == "training":
                time.sleep(self.draw.uniform(0.0, 0.3))
            else:
                everyone = start.alive()  # before the moment, because it takes longer than a save
                start.wait_for(lambda: drafts(start.run) - earlier)
        if start.process.poll() is not None:
            start.fail("a run that nobody killed ended")
        everyone = self.strike(start, everyone or start.alive())
        before, torn_save = last(start.run), bool(drafts(start.run) - earlier)
        left, seconds = gone(start, everyone)
        if left:
            start.fail(f"kill {number}: {len(left)} processes are left after {PATIENCE:.0f} s: {left}")
        self.saving += torn_save
        self.slowest = max(self.slowest, seconds)
        self.lost += last(start.run) < before
        self.torn += sum(not whole(path) for path in start.run.glob("checkpoints/step-*"))
        print(
            f"kill {number} while {moment}: {len(everyone)} processes, gone after {seconds:.1f} s, "
            f"saved up to step {last(start.run)}{', in the middle of a save' if torn_save else ''}",
            flush=True,
        )

    def strike(self, start: Start, everyone: list[psutil.Process]) -> list[psutil.Process]:
        """Kills the victim, and returns every process that the run had."""
        workers = [one for one in everyone if one.pid != start.process.pid]
        while self.victim == "rank" and not workers:
            time.sleep(0.01)
            everyone = start.alive()
            workers = [one for one in everyone if one.pid != start.process.pid]
        victims = {"all": everyone, "launcher": [], "rank": [self.draw.choice(workers)] if workers else []}
        if self.victim != "rank":
            start.process.kill()
        for one in victims[self.victim]:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        return everyone


def gone(start: Start, everyone: list[psutil.Process]) -> tuple[list[psutil.Process], float]:
    """What is left of the run after a kill, by its processes and by a look at the machine, and how long it took."""
    began = time.monotonic()
    while True:
        start.process.poll()
        known = [one for one in everyone if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        left = {one.pid: one for one in [*known, *start.alive()]}
        seconds = time.monotonic() - began
        if not left or seconds > PATIENCE:
            return list(left.values()), seconds
        time.sleep(0.05)


def whole(checkpoint: Path) -> bool:
    """Whether everything in a checkpoint can be read."""
    try:
        json.loads((checkpoint / "trainer/progress.json").read_text(encoding="utf-8"))
        for path in (checkpoint / "model.safetensors", checkpoint / "trainer/optimizer.safetensors"):
            with safe_open(path, "pt") as tensors:
                assert [tensors.get_tensor(name) for name in tensors.keys()]  # noqa: SIM118
        return read_sidecar(str(checkpoint)) is not None
    except Exception as error:
        print(f"{checkpoint} is torn: {error}", flush=True)
        return False


def resumed(run: Path) -> list[str]:
    return ["--resume"] if (run / "config.yaml").exists() else []


def last(run: Path) -> int:
    """The step of the newest checkpoint; 0 before the first."""
    return max((int(path.name[5:]) for path in run.glob("checkpoints/step-*")), default=0)


def drafts(run: Path) -> set[tuple[str, int]]:
    """The checkpoints that are being written, or that an earlier kill left half written."""
    found = set()
    for path in run.glob("checkpoints/.step-*.draft"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino))
    return found


def start_twice(folder: Path, times: int, launcher: str | None) -> None:
    """Two starts at once: one trains to the end as if it were alone, and the other is refused."""
    steps = 120 * EVERY  # so long that the second start comes while the first one trains
    config = write(describe(folder, steps=steps, save_every=EVERY, validate_every=steps), folder / "run.yaml")
    calm = folder / "calm"
    Start.of(config, calm, launcher).finish()
    wrong = 0
    for number in range(times):
        run, words = folder / f"run-{number}", [[], ["--resume"], ["--overwrite"]][number % 3]
        if words:
            Start.of(config, run, launcher).finish()
            back_to(run, steps // 2)
        starts = [Start.of(config, run, launcher, *words) for _ in range(2)]
        codes = [start.process.wait() for start in starts]
        winner, loser = starts if codes[0] == 0 else reversed(starts)
        held = HELD.search(loser.told())
        named = held is not None and (launcher or int(held[1]) == winner.process.pid)
        one = sorted(map(bool, codes)) == [False, True] and "Traceback" not in loser.told().split("torch/")[0]
        good = bool(one and named and same(run, calm, steps) and not winner.alive())
        wrong += not good
        print(f"two starts {' '.join(words) or 'of a new run'}: exit codes {codes}, {held and held[0]}", flush=True)
        if not good:
            print(*(start.told()[-2000:] for start in starts), sep="\n", flush=True)
    print(f"{times} times two starts at once; one trained and the other was refused: {times - wrong} times")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
