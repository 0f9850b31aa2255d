"""Every setting of the server in one table: our variable, Ollama's of the same meaning, default, parser.

`Settings.read(environment)` turns a mapping into a frozen value and knows nothing else; only
`gateway.server` and the command line hand it the real environment. An unusable value is a
`SettingsError` that names the variable, the value and what would be right.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from gateway.duration import parse_duration

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORT = 11434
FOREIGN_STORES = (
    "~/.ollama/models",
    "/usr/share/ollama/.ollama/models",
    "/var/lib/ollama/models",
    "/var/lib/ollama/.ollama/models",
)
"""Where an Ollama on this machine usually keeps its models; those that exist are read, never written."""

_SIZES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_SIZES |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", start=1)}


class SettingsError(ValueError):
    """A variable holds something unusable; the message names it and the way out."""


@dataclass(frozen=True, slots=True)
class Alias:
    """Requests for names that match `pattern` (with `*` as wildcard) are served by `target`."""

    pattern: str
    target: str


def parse_size(text: str) -> int:
    """Bytes of `8GiB`, `8GB`, `8g` or a bare number."""
    match = re.fullmatch(r"([0-9.]+)\s*([kmgt]?i?)b?", text.strip().lower())
    if match is None or match[2] not in _SIZES:
        raise ValueError(f"{text!r} is no size; write 8GiB or a number of bytes")
    return int(float(match[1]) * _SIZES[match[2]])


def parse_flag(text: str) -> bool:
    """Ollama's reading of a boolean: any text that is not plainly false is true."""
    return text.strip().lower() not in {"0", "f", "false", "n", "no", "off"}


def parse_host(text: str) -> tuple[str, int]:
    """`host`, `host:port`, `[::1]:port`, `:port` or a URL; the port defaults to 11434 (or the scheme's)."""
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "", text.strip()
    default = {"http": 80, "https": 443}.get(scheme, DEFAULT_PORT)
    rest = rest.split("/", 1)[0]
    if rest.startswith("["):
        host, _, port = rest[1:].partition("]")
        port = port.removeprefix(":")
    elif rest.count(":") > 1:
        host, port = rest, ""
    else:
        host, _, port = rest.partition(":")
    if port and not (port.isdigit() and int(port) < 65536):
        raise ValueError(f"{text!r} has no usable port; write 127.0.0.1:{DEFAULT_PORT}")
    return host or "127.0.0.1", int(port) if port else default


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _paths(text: str) -> tuple[Path, ...]:
    return tuple(_path(part) for part in text.split(os.pathsep) if part.strip())


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _count(text: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(f"{text!r} is no whole number from 0 upward")
    return int(text)


def _networks(text: str) -> tuple[IPNetwork, ...]:
    try:
        return tuple(ipaddress.ip_network(part, strict=False) for part in _list(text))
    except ValueError as fault:
        raise ValueError(f"{fault}; write networks such as 192.168.1.0/24,10.0.0.5/32") from None


def _aliases(text: str) -> tuple[Alias, ...]:
    found = []
    for part in _list(text):
        pattern, equals, target = part.partition("=")
        if not (equals and pattern.strip() and target.strip()):
            raise ValueError(f"{part!r} is no alias; write gpt-*=gemma3:4b")
        found.append(Alias(pattern.strip(), target.strip()))
    return tuple(found)


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.strip().lower() not in allowed:
            raise ValueError(f"{text!r} is none of {', '.join(allowed)}")
        return text.strip().lower()

    return parse


def _kv_type(text: str) -> str | None:
    known = {"": None, "f16": "bf16", "bf16": "bf16", "f32": "f32", "q8_0": "int8", "int8": "int8"}
    if text.strip().lower() not in known:
        raise ValueError(f"{text!r} is no cache type; write bf16, f32 or int8")
    return known[text.strip().lower()]


def _time_or_off(text: str) -> float:
    return parse_duration(text) if parse_flag(text) else 0.0


@dataclass(frozen=True, slots=True)
class Variable:
    """One row: the field it fills, our name, Ollama's name, the default as text, the parser, a help line."""

    field: str
    name: str
    foreign: str | None
    default: str
    parse: Callable[[str], Any]
    help: str


VARIABLES = (
    Variable("address", "GEMMULE_HOST", "OLLAMA_HOST", f"127.0.0.1:{DEFAULT_PORT}", parse_host,
             "address to listen on (server) or to talk to (commands)"),
    Variable("socket", "GEMMULE_SOCKET", None, "", lambda text: _path(text) if text else None,
             "also listen on this Unix socket"),
    Variable("frames", "GEMMULE_FRAMES", None, "", lambda text: _path(text) if text else None,
             "a Unix socket for local programs that want frames instead of HTTP"),
    Variable("classifier", "GEMMULE_CLASSIFIER", None, "", str,
             "the model that names the images sent as frames; empty for the only one"),
    Variable("models", "GEMMULE_MODELS", "OLLAMA_MODELS", "~/.gemmule/models", _path,
             "where models are kept"),
    Variable("checkpoint", "GEMMULE_CHECKPOINT", "MODEL_CHECKPOINT", "",
             lambda text: _path(text) if text else None,
             "a Kaggle checkpoint's folder to make a model of at start, named as the folder"),
    Variable("tokenizer", "GEMMULE_TOKENIZER", "MODEL_TOKENIZER", "",
             lambda text: _path(text) if text else None,
             "that checkpoint's tokenizer.model, where not beside it"),
    Variable("extra_stores", "GEMMULE_EXTRA_STORES", None, os.pathsep.join(FOREIGN_STORES), _paths,
             "stores of others, read only"),
    Variable("state", "GEMMULE_STATE", None, "~/.gemmule/state", _path,
             "stored responses, keys, compiled programs"),
    Variable("keep_alive", "GEMMULE_KEEP_ALIVE", "OLLAMA_KEEP_ALIVE", "5m", parse_duration,
             "how long an idle model stays loaded; negative for ever"),
    Variable("load_timeout", "GEMMULE_LOAD_TIMEOUT", "OLLAMA_LOAD_TIMEOUT", "5m", parse_duration,
             "longest silence of a loading model"),
    Variable("max_loaded", "GEMMULE_MAX_LOADED_MODELS", "OLLAMA_MAX_LOADED_MODELS", "0", _count,
             "models loaded at once; 0 for as many as fit"),
    Variable("parallel", "GEMMULE_NUM_PARALLEL", "OLLAMA_NUM_PARALLEL", "0", _count,
             "requests a model serves at once; 0 for automatic"),
    Variable("max_queue", "GEMMULE_MAX_QUEUE", "OLLAMA_MAX_QUEUE", "512", _count,
             "requests that may wait before new ones are answered 503"),
    Variable("context", "GEMMULE_CONTEXT_LENGTH", "OLLAMA_CONTEXT_LENGTH", "0", _count,
             "default context in tokens; 0 for what fits"),
    Variable("kv_type", "GEMMULE_KV_CACHE_TYPE", "OLLAMA_KV_CACHE_TYPE", "", _kv_type,
             "type of the key-value cache: bf16, f32 or int8"),
    Variable("memory", "GEMMULE_MEMORY", None, "0", parse_size,
             "bytes that loaded models may use together; 0 for automatic"),
    Variable("gpu_overhead", "GEMMULE_GPU_OVERHEAD", "OLLAMA_GPU_OVERHEAD", "0", parse_size,
             "bytes of GPU memory to leave alone"),
    Variable("device", "GEMMULE_DEVICE", None, "auto", _choice("auto", "cpu", "gpu"), "auto, cpu or gpu"),
    Variable("threads", "GEMMULE_THREADS", None, "0", _count, "CPU threads of a model; 0 for all cores"),
    Variable("origins", "GEMMULE_ORIGINS", "OLLAMA_ORIGINS", "", _list,
             "web origins allowed besides those of this machine"),
    Variable("allowed_hosts", "GEMMULE_ALLOWED_HOSTS", None, "", _list,
             "Host names accepted besides those of this machine"),
    Variable("api_keys", "GEMMULE_API_KEYS", None, "", _list, "API keys, each `key` or `name:key`"),
    Variable("api_key_file", "GEMMULE_API_KEY_FILE", None, "", lambda text: _path(text) if text else None,
             "file of hashed API keys"),
    Variable("anonymous", "GEMMULE_ANONYMOUS", None, "", _networks,
             "networks that may infer, never manage, without a key"),
    Variable("pull_networks", "GEMMULE_PULL_NETWORKS", None, "", _networks,
             "private networks that callers from elsewhere may pull models from"),
    Variable("aliases", "GEMMULE_ALIASES", None, "", _aliases,
             "names served by other models: gpt-*=gemma3:4b"),
    Variable("drain", "GEMMULE_DRAIN", None, "25s", parse_duration,
             "how long running requests may finish at shutdown"),
    Variable("sandbox_workers", "GEMMULE_SANDBOX_WORKERS", None, "2", _count,
             "processes that render, encode and parse strangers' bytes"),
    Variable("no_prune", "GEMMULE_NOPRUNE", "OLLAMA_NOPRUNE", "0", parse_flag,
             "keep blobs that no model uses at start"),
    Variable("check", "GEMMULE_CHECK", None, "30s", _time_or_off,
             "longest look at a model just created or pulled; off for none"),
    Variable("debug", "GEMMULE_DEBUG", "OLLAMA_DEBUG", "0", parse_flag, "log more"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Parsed settings; durations in seconds, sizes in bytes, 0 where the server is to choose."""

    address: tuple[str, int]
    socket: Path | None
    frames: Path | None
    classifier: str
    models: Path
    checkpoint: Path | None
    tokenizer: Path | None
    extra_stores: tuple[Path, ...]
    state: Path
    keep_alive: float
    load_timeout: float
    max_loaded: int
    parallel: int
    max_queue: int
    context: int
    kv_type: Literal["bf16", "f32", "int8"] | None
    memory: int
    gpu_overhead: int
    device: Literal["auto", "cpu", "gpu"]
    threads: int
    origins: tuple[str, ...]
    allowed_hosts: tuple[str, ...]
    api_keys: tuple[str, ...]
    api_key_file: Path | None
    anonymous: tuple[IPNetwork, ...]
    pull_networks: tuple[IPNetwork, ...]
    aliases: tuple[Alias, ...]
    drain: float
    sandbox_workers: int
    no_prune: bool
    check: float
    debug: bool

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Settings of an environment; raises `SettingsError` for the first value that cannot be used."""
        return cls(**{variable.field: _value(variable, environment) for variable in VARIABLES})

    @property
    def host(self) -> str:
        return self.address[0]

    @property
    def port(self) -> int:
        return self.address[1]

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def base_url(self) -> str:
        """Where a client of this machine finds the server: a wildcard address becomes loopback."""
        wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
        host = wildcard.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def _value(variable: Variable, environment: Mapping[str, str]) -> Any:
    names = [name for name in (variable.name, variable.foreign) if name]
    name = next((name for name in names if environment.get(name, "").strip()), variable.name)
    text = environment.get(name, "").strip().strip("\"'") or variable.default
    try:
        return variable.parse(text)
    except ValueError as fault:
        raise SettingsError(f"{name}: {fault}") from None


assert {variable.field for variable in VARIABLES} == {field.name for field in fields(Settings)}
