"""Holds a model's greedy tokens to those of another program on this machine: llama.cpp or transformers.

Finds the program, has it answer the same token ids, and says where the answers part. Starts processes, opens
one connection to this machine; knows no JAX. Called by `check`.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gateway.cli.checks import Check
from gateway.cli.errors import CommandError
from modelfiles.files import ModelFile

if TYPE_CHECKING:
    from engines.decoder.checkup import Continuation

TOKENS = 32
CLOSE = 0.1
"""Nats between two likeliest tokens, below which either is right: programs round differently."""
PATIENCE_SECONDS = 600.0
SERVER = "llama-server"
PEER = Path(__file__).parents[2] / "engines" / "decoder" / "peer.py"
_PYTHON = re.compile(r"(python|pypy)[0-9.]*(\.exe)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Theirs:
    """What the other program said; `encoded` are the text's ids in its own tokenizer, if it has one."""

    program: str
    tokens: tuple[int, ...]
    encoded: tuple[int, ...] | None


def find_program(given: str) -> Path:
    """The program that `--compare` means: a path, a folder that holds one, a name; `llama-server` if empty.

    Raises CommandError.
    """
    place = Path(given).expanduser() if given else None
    if place is not None and place.is_dir():
        names = [f"{folder}{name}" for folder in ("", "bin/") for name in (SERVER, "python")]
        found = next((path for name in names if (path := place / name).is_file()), None)
        if found is None:
            raise CommandError(f"{place} holds neither {SERVER} nor a Python environment")
        return found
    on_path = shutil.which(given or SERVER)
    if on_path is None:
        hint = f"install llama.cpp, or name a {SERVER} or a Python that has transformers or llama_cpp"
        raise CommandError(f"there is no program {given or SERVER} here", hint)
    path = Path(on_path)
    if path.name.startswith("llama-") and path.stem != SERVER:  # its siblings take no token ids
        path = path.with_name(path.name.replace(path.stem, SERVER))
        if not path.is_file():
            raise CommandError(f"there is no {SERVER} beside {on_path}", f"name the path of a {SERVER}")
    return path


def compared(program: Path, files: Sequence[ModelFile], ours: Continuation) -> list[Check]:
    """Rows on how the other program's answer compares. Raises CommandError when it does not answer."""
    with tempfile.TemporaryDirectory(prefix="gemmule-") as folder:
        first = laid_out(files, Path(folder))
        gguf = _is_gguf(first)
        if _PYTHON.fullmatch(program.name):
            theirs = ask_python(program, first if gguf else Path(folder), ours, gguf)
        elif gguf:
            theirs = ask_server(program, first, ours)
        else:
            fix = "name a Python that has transformers: --compare /path/to/python"
            return [Check("greedy", "warn", f"not compared: {program.name} reads GGUF files only", fix)]
    return [*encoding_row(ours, theirs), greedy_row(ours, theirs)]


def laid_out(files: Sequence[ModelFile], folder: Path) -> Path:
    """Links to all files under their own names in `folder`; the first weight file among them."""
    for file in files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file.path)
    return folder / min(file.name for file in files if file.role == "weights")


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as opened:
        return opened.read(4) == b"GGUF"


def greedy_row(ours: Continuation, theirs: Theirs) -> Check:
    """Whether both chose the same tokens, and if not, how sure the choice was where they part."""
    count = min(len(ours.tokens), len(theirs.tokens))
    at = next((i for i in range(count) if ours.tokens[i] != theirs.tokens[i]), count)
    if at == count:
        if not count:
            return Check("greedy", "warn", f"{theirs.program} ended at once", None)
        return Check("greedy", "ok", f"{count} tokens equal to those of {theirs.program}")
    margin = ours.margins[at]
    detail = (
        f"token {at + 1} of {count} differs from that of {theirs.program}: {ours.tokens[at]} here, "
        f"{theirs.tokens[at]} there, where our two likeliest are {margin:.3f} nats apart"
    )
    if margin < CLOSE:
        return Check("greedy", "warn", detail, "rounding decides between tokens this close; nothing to do")
    return Check("greedy", "fail", detail, "report it with the model's name: one of the two computes wrongly")


def encoding_row(ours: Continuation, theirs: Theirs) -> Iterator[Check]:
    """Whether both encode the text alike; nothing where the other has no tokenizer."""
    if theirs.encoded is None:
        return
    if theirs.encoded == ours.prompt:
        yield Check("encoding", "ok", f"{len(ours.prompt)} tokens of text equal to those of {theirs.program}")
    else:
        yield Check(
            "encoding",
            "fail",
            f"a text is {len(ours.prompt)} tokens here and {len(theirs.encoded)} others in {theirs.program}",
            "report it with the model's name: the tokenizer is read wrongly by one of the two",
        )


def ask_python(program: Path, model: Path, ours: Continuation, gguf: bool) -> Theirs:
    """Of the library in that Python which reads such files."""
    library = "llama_cpp" if gguf else "transformers"
    asked = {
        "library": library,
        "model": str(model),
        "prompt": ours.prompt,
        "count": len(ours.tokens),
        "text": ours.text,
    }
    command = [str(program), "-c", PEER.read_text(encoding="utf-8")]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise CommandError(f"{program} did not answer: {error}") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CommandError(f"{library} in {program} failed: {last[:500]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    own = found["encoded"]
    encoded = tuple(own) if own is not None else None
    return Theirs(f"{library} {found['version']}", tuple(found["tokens"]), encoded)


def ask_server(program: Path, model: Path, ours: Continuation) -> Theirs:
    """Of llama.cpp's server, started on a free port of this machine for these two questions."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    context = str(len(ours.prompt) + len(ours.tokens) + 8)
    port = _free_port()
    with tempfile.TemporaryFile() as said:
        command = [str(program), "-m", str(model), "-c", context, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            while _ask(port, "GET", "/health") is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise CommandError(f"{program} does not serve this model: {_last_line(said)}")
                time.sleep(0.1)
            question = {
                "prompt": ours.prompt,
                "n_predict": len(ours.tokens),
                "temperature": 0,
                "return_tokens": True,
                "cache_prompt": False,
            }
            answer = _ask(port, "POST", "/completion", question)
            own = _ask(port, "POST", "/tokenize", {"content": ours.text, "add_special": True})
        finally:
            process.kill()
            process.wait()
    if answer is None or "tokens" not in answer:
        raise CommandError(f"{program} gave no tokens; it may be too old")
    return Theirs("llama.cpp", tuple(answer["tokens"]), tuple(own["tokens"]) if own else None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ask(port: int, method: str, path: str, body: Any = None) -> Any | None:
    """The JSON answer, None for a refusal or nobody there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        content = reply.read()
        return json.loads(content) if reply.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:500] if lines else "no message"
