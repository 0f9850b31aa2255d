"""scripts/setup.py says in one line what is missing, run as a newcomer's machine would run it.

The machine is doctored through the environment: a PATH of stand-ins, and a `sitecustomize` that changes what
Python says about itself. Nothing is installed.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "setup.py"
RECORDING_UV = """#!/bin/sh
echo "$@" >> "$UV_CALLS"
case "$1" in
    venv) mkdir -p "$5/bin"; ln -sf "$4" "$5/bin/python" ;;
esac
"""


class Machine:
    """A machine on which setup runs: programs on its PATH, lies its Python tells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.lies = folder / "lies"
        self.venv = folder / "venv"
        for made in (self.bin, self.lies):
            made.mkdir()
        self.environment = {"PATH": str(self.bin), "UV_CALLS": str(folder / "calls"), "HOME": str(folder)}

    def program(self, name: str, text: str = "#!/bin/sh\nexit 0\n") -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def lie(self, module: str, text: str) -> None:
        (self.lies / f"{module}.py").write_text(text)

    def setup(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | {"PYTHONPATH": str(self.lies)} | variables
        return subprocess.run(
            [sys.executable, str(SCRIPT), "--venv", str(self.venv), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with uv, a compiler, and the shell programs uv's stand-in needs."""
    machine = Machine(tmp_path)
    machine.program("uv", RECORDING_UV)
    machine.program("g++")
    for tool in ("mkdir", "ln", "sh"):
        (machine.bin / tool).symlink_to(
            next(p for p in (Path("/bin"), Path("/usr/bin")) if (p / tool).exists()) / tool
        )
    return machine


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a failure."""
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_a_fresh_machine_is_set_up_and_then_left_alone(machine: Machine) -> None:
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    venv, packages, project = machine.calls()
    assert venv.startswith("venv --clear")
    assert "--require-hashes" in packages
    assert "requirements/cpu.txt" in packages
    assert "requirements/dev.txt" in packages
    assert "--no-deps --no-build-isolation -e" in project
    again = machine.setup()
    assert "up to date" in again.stdout
    assert len(machine.calls()) == 3


def test_a_gpu_brings_the_cuda_build_unless_told_otherwise(machine: Machine) -> None:
    machine.program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: a card'\n")
    machine.lie("sitecustomize", ROOMY)
    assert machine.setup("--no-dev", GEMMULE_DEVICE="cpu").returncode == 0
    assert "cpu.txt" in machine.calls()[1]
    assert "dev.txt" not in machine.calls()[1]
    assert machine.setup("--no-dev").returncode == 0
    assert "cuda.txt" in machine.calls()[3]


def test_a_gpu_that_was_asked_for_and_is_not_there(machine: Machine) -> None:
    assert "nvidia-smi finds no GPU; install the driver" in only_line(machine.setup(GEMMULE_DEVICE="gpu"))


def test_an_unknown_device_is_named(machine: Machine) -> None:
    assert 'GEMMULE_DEVICE is "tpu"; set it to auto, cpu or gpu' in only_line(
        machine.setup(GEMMULE_DEVICE="tpu")
    )


def test_an_old_python_says_which_one_to_get(machine: Machine) -> None:
    machine.lie("sitecustomize", "import sys\nsys.version_info = (3, 9, 2, 'final', 0)\n")
    line = only_line(machine.setup())
    assert "Python 3.9 at " in line
    assert "is too old; install Python 3.11 or newer" in line


def test_an_old_python_hands_over_to_a_newer_one(machine: Machine) -> None:
    machine.lie("sitecustomize", "import sys\nsys.version_info = (3, 9, 2, 'final', 0)\n")
    machine.program("python3.12", '#!/bin/sh\necho "handed over: $@"\n')
    assert "handed over:" in machine.setup().stdout


@pytest.mark.parametrize("module", ["ensurepip", "venv"])
def test_a_python_without_venv_names_the_package(machine: Machine, module: str) -> None:
    (machine.bin / "uv").unlink()
    machine.lie(module, f"raise ImportError('no', name='{module}')\n")
    line = only_line(machine.setup())
    assert f"this Python has no {module} module; install it (apt install python3." in line


NARROW = """import collections, shutil
shutil.disk_usage = lambda path: collections.namedtuple('U', 'total used free')(1, 1, 10**8)
"""
ROOMY = """import collections, shutil
shutil.disk_usage = lambda path: collections.namedtuple('U', 'total used free')(1, 1, 10**12)
"""


def test_a_full_disk_is_noticed_before_anything_is_made(machine: Machine) -> None:
    machine.lie("sitecustomize", NARROW)
    line = only_line(machine.setup())
    assert "no disk space: 0.1 GB free at" in line
    assert "2.0 GB needed; free some" in line
    assert machine.calls() == []


def test_a_missing_compiler_is_a_loud_note_not_a_failure(machine: Machine) -> None:
    (machine.bin / "g++").unlink()
    done = machine.setup()
    assert done.returncode == 0
    assert "WARNING: no C++ compiler" in done.stdout
    machine.program("g++")
    assert "up to date" not in machine.setup().stdout, "a compiler that came later must be used"


def test_a_failing_installer_is_quoted(machine: Machine) -> None:
    machine.program(
        "uv", RECORDING_UV + '[ "$1" = pip ] && { echo details; echo "error: no route"; exit 2; }\nexit 0\n'
    )
    line = only_line(machine.setup())
    assert "installing the packages failed: error: no route; check the network" in line
    assert "details" in (machine.venv / "gemmule-setup.log").read_text()


def test_a_half_made_environment_is_finished_next_time(machine: Machine) -> None:
    machine.program("uv", RECORDING_UV + '[ "$1" = pip ] && exit 1\nexit 0\n')
    only_line(machine.setup())
    machine.program("uv", RECORDING_UV)
    assert machine.setup().returncode == 0
    assert "--require-hashes" in machine.calls()[-2]


def test_the_script_can_be_read_by_an_old_python() -> None:
    import ast

    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
    assert os.access(SCRIPT, os.R_OK)
