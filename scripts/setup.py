"""Makes the environment gemmule runs in: a venv, the hash-pinned packages, the project itself.

Standard library only, and plain enough for Python 3.6 to read, so that an old one can say what it lacks.
Every failure is one line with cause and fix. Quick when nothing changed. Called by the Makefile:
`python3 scripts/setup.py --venv .venv [--no-dev]`.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
NEWER = ("python3.14", "python3.13", "python3.12", "python3.11")
ROOT = Path(__file__).resolve().parent.parent
STAMP = "gemmule-setup.txt"
LOG = "gemmule-setup.log"
NEEDED_BYTES = {"cpu": 2 * 10**9, "cuda": 12 * 10**9}
COMPILERS = ("c++", "g++", "clang++")
BUILD_INPUTS = ("pyproject.toml", "setup.py")
NATIVE_FOLDER = ROOT / "engines" / "decoder" / "native"
NATIVE_SUFFIXES = {".cc", ".cpp", ".h", ".hpp", ".inc"}
NVIDIA_SECONDS = 20


class Problem(Exception):
    """Setting up cannot go on: what is wrong, and what to do about it."""

    def __init__(self, cause, fix):
        super().__init__(f"{cause}; {fix}")


def main(arguments):
    """Returns the exit code; the one line of a failure goes to stderr."""
    parser = argparse.ArgumentParser(description="Make the environment gemmule runs in.")
    parser.add_argument("--venv", default=".venv", help="where to make it (default: .venv)")
    parser.add_argument("--dev", dest="dev", action="store_true", default=True, help="install test tools too")
    parser.add_argument("--no-dev", dest="dev", action="store_false", help="install what serving needs only")
    options = parser.parse_args(arguments)
    try:
        require_python(arguments)
        set_up(Path(options.venv).absolute(), choose_build(os.environ), options.dev)
    except Problem as problem:
        sys.stderr.write(f"setup: {problem}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nsetup: stopped; run it again to go on\n")
        return 130
    return 0


def require_python(arguments):
    """Goes on in a newer Python when this one is too old and there is one; raises Problem when not."""
    if sys.version_info[:2] >= OLDEST:
        return
    for name in NEWER:
        path = shutil.which(name)
        if path and not os.environ.get("GEMMULE_SETUP_AGAIN"):
            os.environ["GEMMULE_SETUP_AGAIN"] = "1"
            sys.stdout.flush()
            os.execv(path, [path, str(Path(__file__).resolve()), *arguments])
    raise Problem(
        f"Python {sys.version_info[0]}.{sys.version_info[1]} at {sys.executable} is too old",
        "install Python 3.11 or newer and name it: make PYTHON=python3.12",
    )


def choose_build(environment):
    """`cuda` where an NVIDIA driver answers and the CPU was not asked for, else `cpu`."""
    wanted = environment.get("GEMMULE_DEVICE", "").strip().lower() or "auto"
    if wanted not in ("auto", "cpu", "gpu"):
        raise Problem(f'GEMMULE_DEVICE is "{wanted}"', "set it to auto, cpu or gpu")
    if wanted == "cpu":
        return "cpu"
    if nvidia_answers():
        return "cuda"
    if wanted == "gpu":
        raise Problem("GEMMULE_DEVICE is gpu, but nvidia-smi finds no GPU", "install the driver, or unset it")
    return "cpu"


def nvidia_answers():
    """Whether nvidia-smi lists a card."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        done = subprocess.run(
            [command, "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=NVIDIA_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and b"GPU" in done.stdout


def set_up(venv, build, dev):
    """Brings the environment up to date; says nothing but one line when it is."""
    requirements = [ROOT / "requirements" / f"{build}.txt"]
    if dev:
        requirements.append(ROOT / "requirements" / "dev.txt")
    compiler = find_compiler(os.environ)
    if compiler is None:
        say("WARNING: no C++ compiler: gemmule falls back on plain JAX, several times slower on a CPU")
        say("         install g++ or clang++ (apt install g++, or xcode-select --install), then make setup")
    wanted = [fingerprint(requirements, build), fingerprint(build_inputs(), compiler)]
    had = read_stamp(venv)
    tool = Installer(venv)
    if had == wanted and tool.usable():
        say(f"environment at {shown(venv)} is up to date")
        return
    require_room(venv, build)
    fresh = tool.make_venv()
    if fresh or had[:1] != wanted[:1]:
        say(f"installing the packages for {build.upper()} with {tool.name} (a minute or two) ...")
        tool.install_requirements(requirements)
    say("building gemmule ...")
    tool.install_project()
    (venv / STAMP).write_text("\n".join(wanted) + "\n")
    say(f"ready: {shown(venv / 'bin' / 'gemmule')}")


def build_inputs():
    """The files that, when they change, ask for a new build of the project."""
    found = [ROOT / name for name in BUILD_INPUTS]
    found += [path for path in NATIVE_FOLDER.rglob("*") if path.suffix in NATIVE_SUFFIXES]
    return sorted(path for path in found if path.exists())


def find_compiler(environment):
    """The path of the C++ compiler a build would take, or None."""
    named = environment.get("CXX", "").split(" ")[0]
    candidates = [named, *COMPILERS] if named else COMPILERS
    return next((path for path in map(shutil.which, candidates) if path), None)


def require_room(venv, build):
    """Raises Problem when the disk that gets the environment has not enough room."""
    place = next(folder for folder in (venv, *venv.parents) if folder.exists())
    free, needed = shutil.disk_usage(str(place)).free, NEEDED_BYTES[build]
    if (venv / STAMP).exists():
        needed //= 4  # most of it is there already
    if free < needed:
        raise Problem(
            f"no disk space: {free / 1e9:.1f} GB free at {place}, {needed / 1e9:.1f} GB needed",
            "free some, or make VENV=/elsewhere/venv",
        )


class Installer:
    """pip, or uv where it is on the PATH: the same pinned result, faster."""

    def __init__(self, venv):
        self.uv = shutil.which("uv")
        self.name = "uv" if self.uv else "pip"
        self.venv = venv
        self.python = str(venv / "bin" / "python")

    def usable(self):
        """Whether the venv's Python runs, is new enough, and has pip where pip is what we use."""
        check = f"import sys; assert sys.version_info[:2] >= {OLDEST}" + ("" if self.uv else "; import pip")
        try:
            done = subprocess.run([self.python, "-c", check], stderr=subprocess.DEVNULL)
        except OSError:
            return False
        return done.returncode == 0

    def make_venv(self):
        """Makes the venv unless a usable one is there; tells whether it did.

        Raises Problem when this Python lacks what that takes.
        """
        if self.usable():
            return False
        say(f"making {shown(self.venv)} with Python {sys.version_info[0]}.{sys.version_info[1]} ...")
        command = [self.uv, "venv", "--clear", "--python", sys.executable, str(self.venv)]
        if not self.uv:
            require_venv_module()
            command = [sys.executable, "-m", "venv", "--clear", str(self.venv)]
        self.run(command, "making the venv failed")
        return True

    def install_requirements(self, files):
        pins = [part for file in files for part in ("-r", str(file))]
        self.run([*self.command(), "--require-hashes", *pins], "installing the packages failed")

    def install_project(self):
        flags = ["--no-deps", "--no-build-isolation", "-e", str(ROOT)]
        self.run([*self.command(), *flags], "building gemmule failed")

    def command(self):
        if self.uv:
            return [self.uv, "pip", "install", "--python", self.python]
        return [self.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]

    def run(self, command, cause):
        """Runs a tool with its output in the log; raises Problem with its last word."""
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=str(ROOT))
        self.venv.mkdir(parents=True, exist_ok=True)  # after the command: it may clear the folder
        log = self.venv / LOG
        with log.open("ab") as file:
            file.write(done.stdout)
        if done.returncode:
            lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
            last = lines[-1].strip() if lines else f"exit status {done.returncode}"
            raise Problem(
                f"{cause}: {last}",
                f"check the network and the proxy, then run it again; all it said is in {shown(log)}",
            )


def require_venv_module():
    """Raises Problem when this Python cannot make a venv with pip, as Debian's cannot by itself."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise Problem(
            f"this Python has no {error.name or 'venv'} module",
            f"install it (apt install python{version}-venv), or install uv",
        ) from None


def fingerprint(files, word):
    """A digest over what the files hold and over the Python; an absent file is a fault of the checkout."""
    state = hashlib.sha256(repr((word, sys.version_info[:2])).encode())
    for path in files:
        try:
            state.update(path.read_bytes() + b"\0")
        except OSError:
            raise Problem(f"{shown(path)} is missing", f"restore it: git checkout {shown(path)}") from None
    return state.hexdigest()


def read_stamp(venv):
    """The fingerprints of the last complete setup."""
    try:
        return (venv / STAMP).read_text().split()
    except OSError:
        return []


def shown(path):
    """A path as the user would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def say(text):
    sys.stdout.write(f"setup: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
