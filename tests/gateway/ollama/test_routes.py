"""The native API over the whole gateway with the scripted engine: real sandbox, real runner, no network."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
import pytest

from gateway import __version__

HELLO = json.dumps([{"text": "Hel"}, {"text": "lo"}])
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "script": HELLO}
GENERATE = {"model": "scripted", "prompt": "hi", "script": HELLO}


def lines(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.removesuffix("\n").split("\n")]


def test_the_two_hellos(http: httpx.Client) -> None:
    assert http.get("/").text == "Ollama is running"
    assert http.head("/").status_code == 200
    assert http.head("/").headers["x-gemmule-version"] == __version__
    version = http.get("/api/version").json()["version"]
    assert [int(part) for part in version.split(".")]
    assert http.head("/api/tags").status_code == 200


def test_a_chat_streams_unless_told_otherwise(http: httpx.Client) -> None:
    found = lines(http.post("/api/chat", json=CHAT))
    assert "".join(line["message"]["content"] for line in found) == "Hello"
    assert {line["message"]["role"] for line in found} == {"assistant"}
    assert [line["done"] for line in found[:-1]] == [False] * (len(found) - 1)
    last = found[-1]
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", 5)
    assert all(isinstance(last[key], int) for key in last if key.endswith(("_count", "_duration")))
    assert "Z" in last["created_at"]


def test_a_whole_chat_is_one_object(http: httpx.Client) -> None:
    response = http.post("/api/chat", json=CHAT | {"stream": False})
    assert response.headers["content-type"] == "application/json"
    assert response.json()["message"] == {"role": "assistant", "content": "Hello"}


def test_generate_gives_back_a_context_that_continues(http: httpx.Client) -> None:
    first = http.post("/api/generate", json=GENERATE | {"stream": False}).json()
    assert first["response"] == "Hello"
    again = http.post("/api/generate", json=GENERATE | {"stream": False, "context": first["context"]}).json()
    assert again["prompt_eval_count"] > first["prompt_eval_count"] + len("Hello")
    raw = http.post("/api/generate", json=GENERATE | {"stream": False, "raw": True}).json()
    assert "context" not in raw
    assert raw["prompt_eval_count"] == len("hi") + 1  # and BOS


def test_stop_strings_and_lengths_end_a_reply(http: httpx.Client) -> None:
    stopped = http.post("/api/generate", json=GENERATE | {"stream": False, "options": {"stop": ["l"]}}).json()
    assert (stopped["response"], stopped["done_reason"]) == ("He", "stop")
    cut = http.post("/api/generate", json=GENERATE | {"stream": False, "options": {"num_predict": 2}}).json()
    assert (cut["response"], cut["done_reason"]) == ("He", "length")


def test_log_probabilities(http: httpx.Client) -> None:
    script = json.dumps([{"text": "A", "logprobs": [{"logprob": -0.5, "top": [[68, -0.5], [69, -1.5]]}]}])
    reply = http.post(
        "/api/chat", json=CHAT | {"stream": False, "logprobs": True, "top_logprobs": 2, "script": script}
    ).json()
    (entry,) = reply["logprobs"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("A", -0.5, [65])
    assert [top["token"] for top in entry["top_logprobs"]] == ["A", "B"]


def test_thinking_and_tool_calls_have_fields_of_their_own(http: httpx.Client) -> None:
    call = '{"name": "weather", "arguments": {"city": "Gent"}}'
    script = json.dumps(
        [
            {"tokens": [261]},
            {"text": "hm"},
            {"tokens": [262]},
            {"tokens": [263]},
            {"text": call},
            {"tokens": [264]},
        ]
    )
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    found = lines(http.post("/api/chat", json=CHAT | {"think": True, "tools": [tool], "script": script}))
    assert "".join(line["message"].get("thinking", "") for line in found) == "hm"
    (calls,) = [line["message"]["tool_calls"] for line in found if "tool_calls" in line["message"]]
    assert calls[0]["function"] == {"index": 0, "name": "weather", "arguments": {"city": "Gent"}}
    assert found[-1]["done_reason"] == "stop"


def test_models_come_and_go_by_empty_prompts(http: httpx.Client) -> None:
    loaded = http.post("/api/generate", json={"model": "scripted", "keep_alive": "10m"})
    assert (loaded.json()["done_reason"], loaded.headers["content-type"]) == ("load", "application/json")
    (row,) = [row for row in http.get("/api/ps").json()["models"] if row["name"] == "scripted:latest"]
    assert (row["name"], row["model"], row["size_vram"]) == ("scripted:latest", "scripted:latest", 0)
    assert row["context_length"] > 0
    gone = http.post("/api/chat", json={"model": "scripted", "messages": [], "keep_alive": 0})
    assert gone.json()["done_reason"] == "unload"
    assert gone.json()["message"] == {"role": "assistant", "content": ""}
    assert http.get("/api/ps").json() == {"models": []}
    http.post("/api/generate", json={"model": "scripted", "keep_alive": -1})
    assert http.get("/api/ps").json()["models"][0]["expires_at"] > "2300"
    http.post("/api/generate", json={"model": "scripted", "keep_alive": "5m"})


def test_vectors(http: httpx.Client) -> None:
    both = http.post("/api/embed", json={"model": "scripted", "input": ["a", "b"]}).json()
    assert [len(vector) for vector in both["embeddings"]] == [16, 16]
    assert sum(number**2 for number in both["embeddings"][0]) == pytest.approx(1, abs=1e-5)
    cut = http.post("/api/embed", json={"model": "scripted", "input": "a", "dimensions": 3}).json()
    assert len(cut["embeddings"][0]) == 3
    assert sum(number**2 for number in cut["embeddings"][0]) == pytest.approx(1, abs=1e-5)
    assert http.post("/api/embed", json={"model": "scripted", "input": ""}).json()["embeddings"] == []
    old = http.post("/api/embeddings", json={"model": "scripted", "prompt": "a"}).json()
    assert old["embedding"] == pytest.approx(both["embeddings"][0])
    assert http.post("/api/embeddings", json={"model": "scripted", "prompt": ""}).json() == {"embedding": []}


def test_the_prompt_alone(http: httpx.Client) -> None:
    reply = http.post("/api/chat", json=CHAT | {"_debug_render_only": True}).json()
    assert reply["_debug_info"]["rendered_template"].endswith("hi<end_of_turn>\n<start_of_turn>model\n")
    reply = http.post("/api/generate", json=GENERATE | {"_debug_render_only": True}).json()
    assert "hi" in reply["_debug_info"]["rendered_template"]


def test_a_break_in_mid_stream_is_a_last_line_with_the_error(http: httpx.Client) -> None:
    script = json.dumps([{"text": "Hel"}, {"fail": "error"}])
    found = []
    with (
        pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"),
        http.stream("POST", "/api/chat", json=CHAT | {"script": script}) as response,
    ):
        for line in response.iter_lines():
            found.append(json.loads(line))
    assert "".join(line["message"]["content"] for line in found[:-1]) == "Hel"
    assert found[-1] == {"error": "the script said so"}
    whole = http.post("/api/chat", json=CHAT | {"script": script, "stream": False})
    assert (whole.status_code, whole.json()) == (500, {"error": "the script said so"})


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/chat", {"messages": []}, 400, "model is required"),
        ("/api/chat", CHAT | {"model": "nope"}, 404, "model 'nope' not found"),
        ("/api/generate", GENERATE | {"model": "nope"}, 404, "model 'nope' not found"),
        ("/api/show", {"model": "nope"}, 404, "model 'nope' not found"),
        ("/api/embed", {"model": "nope", "input": "a"}, 404, 'model "nope" not found, try pulling it first'),
        ("/api/embeddings", {"model": "nope"}, 404, 'model "nope" not found, try pulling it first'),
        ("/api/embed", {"model": "no!!", "input": "a"}, 400, "invalid model name"),
        ("/api/show", {"model": "../../etc/passwd"}, 400, "invalid model name"),
        ("/api/generate", GENERATE | {"model": "a b"}, 400, "invalid model name"),
        ("/api/chat", CHAT | {"model": "a//b"}, 400, "invalid model name"),
        ("/api/embed", {"model": "x:y:z", "input": "x"}, 400, "invalid model name"),
        ("/api/show", {}, 400, "model is required"),
        (
            "/api/chat",
            CHAT | {"options": {"temperature": "hot"}},
            400,
            'option "temperature" must be of type float32',
        ),
        ("/api/generate", GENERATE | {"suffix": "x"}, 400, '"scripted" does not support insert'),
        ("/api/chat", CHAT | {"options": {"logit_bias": {"999999": 1}}}, 400, "logit_bias: token id 999999"),
        ("/api/copy", {"source": "nope", "destination": "x"}, 404, 'model "nope" not found'),
        ("/api/copy", {"source": "a b", "destination": "x"}, 400, 'source "a b" is invalid'),
        ("/api/copy", {"source": "a"}, 400, 'destination "" is invalid'),
        ("/api/create", {"model": "x"}, 400, "neither 'from' or 'files' was specified"),
        ("/api/create", {"model": "x", "from": "y", "template": "{{ if"}, 400, "template error: "),
        ("/api/create", {"model": "x", "from": "y", "parser": "nope"}, 400, "unknown parser"),
        ("/api/create", {"model": "x", "from": "y", "renderer": "nope"}, 400, "unknown renderer"),
        (
            "/api/create",
            {"model": "x", "from": "y", "quantize": "Q3_K"},
            400,
            "unsupported quantization type Q3_K - supported types are Q4_0, Q4_K_M, Q8_0",
        ),
        (
            "/api/create",
            {"model": "x", "from": "y", "parameters": {"top_k": "x"}},
            400,
            'option "top_k" must be',
        ),
        ("/api/create", {"model": "x", "files": {"a.gguf": "md5:1"}}, 400, "invalid digest format"),
        ("/api/create", {"model": "a b", "from": "y"}, 400, "invalid model name"),
        ("/api/pull", {"model": ""}, 400, "model is required"),
    ],
)
def test_faults_are_one_string_with_the_right_status(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    response = http.post(path, json=body)
    assert response.status_code == status, response.text
    assert response.json()["error"].startswith(message)
    assert list(response.json()) == ["error"]


def test_curl_says_form_and_is_understood_but_a_web_page_is_not(http: httpx.Client) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    raw = json.dumps(CHAT | {"stream": False}).encode()
    assert http.post("/api/chat", content=raw, headers=form).status_code == 200
    page = form | {"origin": "http://localhost:3000"}
    assert http.post("/api/chat", content=raw, headers=page).status_code == 415


def test_blobs_are_kept_under_their_digest_only(http: httpx.Client) -> None:
    data = b"a blob"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert http.head(f"/api/blobs/{digest}").status_code == 404
    assert http.post(f"/api/blobs/{digest}", content=data).status_code == 201
    assert http.post(f"/api/blobs/{digest}", content=data).status_code == 200
    assert http.head(f"/api/blobs/{digest}").status_code == 200
    wrong = http.post(f"/api/blobs/sha256:{'0' * 64}", content=data)
    assert (wrong.status_code, wrong.json()["error"][:15]) == (400, "digest mismatch")
    assert http.head("/api/blobs/sha256:12").status_code == 400
    assert http.head(f"/api/blobs/sha256:{'0' * 64}").status_code == 404


def test_an_upload_that_is_no_model_is_refused_in_a_line(http: httpx.Client) -> None:
    data = b"GGUF but not really"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    http.post(f"/api/blobs/{digest}", content=data)
    body = {"model": "broken", "files": {"m.gguf": digest}}
    found = lines(http.post("/api/create", json=body))
    assert list(found[-1]) == ["error"]
    refused = http.post("/api/create", json=body | {"stream": False})
    assert refused.status_code == 400
    assert refused.json() == found[-1]
    assert http.post("/api/show", json={"model": "broken"}).status_code == 404


def test_deleting_what_is_not_there(http: httpx.Client) -> None:
    response = http.request("DELETE", "/api/delete", json={"name": "nope"})
    assert (response.status_code, response.json()) == (404, {"error": "model 'nope' not found"})


def test_unknown_paths_and_methods_answer_in_the_dialect(http: httpx.Client) -> None:
    assert http.get("/api/nothing").status_code == 404
    assert isinstance(http.get("/api/nothing").json()["error"], str)
    assert http.get("/api/chat").status_code == 405


def test_tags_list_both_names_and_capabilities(http: httpx.Client) -> None:
    (row,) = [row for row in http.get("/api/tags").json()["models"] if row["name"] == "scripted:latest"]
    assert row["name"] == row["model"] == "scripted:latest"
    assert len(row["digest"]) == 64
    assert "completion" in row["capabilities"]
    shown = http.post("/api/show", json={"name": "scripted"}).json()
    assert shown["model_info"] == {}
    copilot = {"user-agent": "GitHubCopilotChat/0.30"}
    seen = http.post("/api/show", json={"name": "scripted"}, headers=copilot).json()
    assert seen["model_info"]["general.basename"] == "scripted"
    assert "completion" in shown["capabilities"]
    assert shown["parameters"].split() == ["temperature", "0"]
