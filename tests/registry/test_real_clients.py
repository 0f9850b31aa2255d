"""The real clients of the hubs against the fake one: what they accept, our own client was tested against."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from registry.sources.huggingface import find_token, hub_caches
from tests.registry.fakehub import FakeHub


def run_client(code: str, environment: dict[str, str], folder: Path) -> str:
    """A fresh interpreter: these clients read their environment when they are imported."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_huggingface_hub_downloads_from_the_fake_hub(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    files = {"config.json": b"{}", "model.safetensors": b"w" * 5000, "nested/a.txt": b"a"}
    with FakeHub() as hub, FakeHub("127.0.0.2") as cdn:
        hub.repos["org/fox"], hub.cdn_origin, cdn.blobs = files, cdn.url, hub.blobs
        code = (
            "import huggingface_hub as h\npath = h.snapshot_download('org/fox', revision='main')\nprint(path)"
        )
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        path = Path(run_client(code, environment, tmp_path))
        assert {name: (path / name).read_bytes() for name in files} == files
        refused = (
            "import huggingface_hub as h\n"
            "try:\n h.model_info('org/ghost')\nexcept Exception as e:\n print(type(e).__name__)"
        )
        assert run_client(refused, environment, tmp_path) == "RepositoryNotFoundError"
        hub.gated.add("org/fox")
        gated = refused.replace("ghost", "fox")
        assert run_client(gated, environment, tmp_path) == "GatedRepoError"


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HF_HOME": "{home}/elsewhere"},
        {"HF_TOKEN": "of-the-variable", "HF_HUB_CACHE": "{home}/cache"},
        {"HF_TOKEN_PATH": "{home}/elsewhere/token"},
    ],
)
def test_token_and_cache_are_those_of_the_hubs_own_client(tmp_path: Path, variables: dict[str, str]) -> None:
    for folder in (tmp_path / ".cache" / "huggingface", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        (folder / "token").write_text(f"in-{folder.name}\n", encoding="utf-8")
    environment = {name: value.format(home=tmp_path) for name, value in variables.items()}
    code = (
        "import os, sys\nfrom registry.sources.huggingface import find_token, hub_caches\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "found = find_token(dict(os.environ)), str(hub_caches(dict(os.environ))[0])\n"
        "assert 'huggingface_hub' in sys.modules\n"
        "print(*found)"
    )
    token, cache = run_client(code, environment, tmp_path).split()
    injected = environment | {"HOME": str(tmp_path)}
    assert token == find_token(injected)
    assert Path(cache) == hub_caches(injected)[0]


@pytest.mark.slow
def test_kagglehub_downloads_from_the_fake_hub(tmp_path: Path) -> None:
    pytest.importorskip("kagglehub", reason="kagglehub is not installed; it is no dependency")
    files = {"2b-it/_METADATA": b"{}", "2b-it/checkpoint": b"c" * 500, "tokenizer.model": b"t"}
    with FakeHub() as hub:
        hub.kaggle["google/gemma/flax/2b-it"] = {3: files}
        code = (
            "import kagglesdk.kaggle_env as e\n"
            f"e._env_to_endpoint[e.KaggleEnv.TEST] = {hub.url!r}\n"
            "import kagglehub\n"
            "print(kagglehub.model_download('google/gemma/flax/2b-it'))"
        )
        environment = {
            "KAGGLE_API_ENVIRONMENT": "TEST", "KAGGLE_USERNAME": "u", "KAGGLE_KEY": "k",
            "KAGGLEHUB_CACHE": str(tmp_path / "cache"),
        }  # fmt: skip
        path = Path(run_client(code, environment, tmp_path))
        assert {name: (path / name).read_bytes() for name in files} == files
