"""Settings: our variable before Ollama's, every kind of value, faults that name the variable."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from gateway.auth import check_exposure, hash_key, read_keys
from gateway.settings import VARIABLES, Settings, SettingsError, parse_host, parse_size


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.read({})
    assert settings.address == ("127.0.0.1", 11434)
    assert settings.models == Path("~/.gemmule/models").expanduser()
    assert settings.keep_alive == 300
    assert settings.max_queue == 512
    assert settings.is_loopback


def test_ours_goes_before_ollamas_and_ollamas_before_the_default() -> None:
    assert Settings.read({"OLLAMA_KEEP_ALIVE": "1h"}).keep_alive == 3600
    assert Settings.read({"OLLAMA_KEEP_ALIVE": "1h", "GEMMULE_KEEP_ALIVE": "2m"}).keep_alive == 120
    assert Settings.read({"OLLAMA_KEEP_ALIVE": "1h", "GEMMULE_KEEP_ALIVE": " "}).keep_alive == 3600
    assert Settings.read({"OLLAMA_MODELS": '"/models"'}).models == Path("/models")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0", ("0.0.0.0", 11434)),
        ("example.com:56789", ("example.com", 56789)),
        (":1234", ("127.0.0.1", 1234)),
        ("[::1]:1337", ("::1", 1337)),
        ("::1", ("::1", 11434)),
        ("http://example.com", ("example.com", 80)),
        ("https://example.com", ("example.com", 443)),
        ("https://example.com:99/path", ("example.com", 99)),
        ("http://[::1]:56789/", ("::1", 56789)),
    ],
)
def test_hosts(text: str, address: tuple[str, int]) -> None:
    assert parse_host(text) == address


def test_the_look_at_new_models_takes_a_time_or_is_off() -> None:
    assert Settings.read({}).check == 30
    assert Settings.read({"GEMMULE_CHECK": "2m"}).check == 120
    for text in ("off", "0", "false"):
        assert Settings.read({"GEMMULE_CHECK": text}).check == 0


@pytest.mark.parametrize("text", ["localhost:port", "localhost:66000", "a:1:b"])
def test_what_is_no_host(text: str) -> None:
    if text == "a:1:b":  # more than one colon reads as an IPv6 address without brackets
        assert parse_host(text) == ("a:1:b", 11434)
        return
    with pytest.raises(ValueError, match="no usable port"):
        parse_host(text)


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 * 2**30), ("2gb", 2 * 10**9), ("512", 512), ("1.5k", 1500)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GEMMULE_HOST", "here:there"),
        ("OLLAMA_KEEP_ALIVE", "long"),
        ("GEMMULE_DEVICE", "tpu"),
        ("GEMMULE_MAX_QUEUE", "-3"),
        ("GEMMULE_MEMORY", "much"),
        ("GEMMULE_ANONYMOUS", "everyone"),
        ("GEMMULE_ALIASES", "gpt-4"),
        ("OLLAMA_KV_CACHE_TYPE", "q3"),
    ],
)
def test_faults_name_the_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: "):
        Settings.read({name: value})


def test_lists_networks_and_aliases() -> None:
    settings = Settings.read(
        {
            "GEMMULE_ANONYMOUS": "192.168.1.7/24, 10.0.0.1",
            "GEMMULE_ALIASES": "gpt-*=gemma3:4b,text-embedding-*=embeddinggemma",
            "OLLAMA_ORIGINS": "https://a.example,https://b.example",
        }
    )
    assert settings.anonymous == (ipaddress.ip_network("192.168.1.0/24"), ipaddress.ip_network("10.0.0.1/32"))
    assert (settings.aliases[0].pattern, settings.aliases[0].target) == ("gpt-*", "gemma3:4b")
    assert settings.origins == ("https://a.example", "https://b.example")


def test_every_variable_has_a_help_line_and_a_default_that_parses() -> None:
    assert all(
        variable.help and variable.parse(variable.default) is not NotImplemented for variable in VARIABLES
    )


def test_a_public_address_needs_a_key_and_the_refusal_names_both_remedies() -> None:
    for address in ("0.0.0.0", "192.168.1.5:80", "::"):
        settings = Settings.read({"GEMMULE_HOST": address})
        with pytest.raises(SettingsError, match=r"GEMMULE_API_KEYS.*GEMMULE_ANONYMOUS"):
            check_exposure(settings, ())
    keyed = Settings.read({"GEMMULE_HOST": "0.0.0.0", "GEMMULE_API_KEYS": "secret"})
    check_exposure(keyed, read_keys(keyed))
    check_exposure(Settings.read({"GEMMULE_HOST": "0.0.0.0", "GEMMULE_ANONYMOUS": "10.0.0.0/8"}), ())


def test_a_key_file_holds_hashes_models_and_rates(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    digest = hash_key("s3cret").hex()
    path.write_text(f"# people\nanna sha256:{digest} models=gemma3*,bud rate=2/s\n\n")
    (key,) = read_keys(Settings.read({"GEMMULE_API_KEY_FILE": str(path)}))
    assert (key.name, key.digest.hex(), key.rate, key.burst) == ("anna", digest, 2, 2)
    assert key.allows("gemma3:4b")
    assert not key.allows("llama3")
    path.write_text("anna s3cret\n")
    with pytest.raises(SettingsError, match="line 1"):
        read_keys(Settings.read({"GEMMULE_API_KEY_FILE": str(path)}))
    with pytest.raises(SettingsError, match="cannot read"):
        read_keys(Settings.read({"GEMMULE_API_KEY_FILE": str(tmp_path / "none")}))
