"""LangChain's, LlamaIndex's and instructor's own adapters on pysa, each in a process of its own, as a user runs them.

With random weights the texts mean nothing: an adapter's answer must be pysa.Llama's own, asked here with the arguments
that the adapter is known to pass on. What a grammar guides must fit its schema.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pysa.llama import Llama

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT, TURNS = "the thing", [{"role": "system", "content": "be brief"}, {"role": "user", "content": "and why"}]
BEGIN = """
import json, sys, warnings
warnings.simplefilter("ignore")
import pysa.llama
pysa.llama.install_as_llama_cpp()
path = sys.argv[1]
said = {}
"""
USER = """
from typing import Literal
from pydantic import BaseModel

class User(BaseModel):
    "Somebody."
    age: int
    kind: Literal["x", "yy"]
    tags: list[bool]
"""


@pytest.fixture(scope="module")
def path(tiny_gguf: Callable[..., Path]) -> Path:
    return tiny_gguf("llama", n_layer=2, vocab="gpt2", seed=4, extra_kv={"tokenizer.chat_template": TEMPLATE})


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[Llama]:
    with Llama(path, n_ctx=1024, n_threads=1, verbose=False) as llm:
        yield llm


@pytest.fixture
def run(path: Path, tmp_path: Path) -> Callable[[str], Any]:
    """Runs a program whose `said` is what it found."""

    def run(program: str) -> Any:
        script = tmp_path / "program.py"
        script.write_text(BEGIN + program + '\nprint("SAID" + json.dumps(said))\n', encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(script), str(path)],
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=300,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.partition("SAID")[2])

    return run


def text_of(result: Any) -> str:
    return str(result["choices"][0]["text"])


def check_user(user: Any) -> None:
    assert sorted(user) == ["age", "kind", "tags"]
    assert type(user["age"]) is int
    assert user["kind"] in ("x", "yy")
    assert all(type(tag) is bool for tag in user["tags"])


def test_langchains_llm(run: Callable[[str], Any], llm: Llama) -> None:
    pytest.importorskip("langchain_community")
    said = run("""
from langchain_community.llms import LlamaCpp
llm = LlamaCpp(model_path=path, n_ctx=1024, n_threads=1, temperature=0, max_tokens=20, top_k=7, verbose=False)
said["invoked"] = llm.invoke("the thing")
said["stopped"] = llm.invoke("the thing", stop=[said["invoked"][9]])
said["streamed"] = list(llm.stream("the thing"))
""")
    given: dict[str, Any] = {"temperature": 0, "max_tokens": 20, "top_k": 7, "top_p": 0.95, "repeat_penalty": 1.1}
    expected = text_of(llm(PROMPT, **given))
    assert said["invoked"] == "".join(said["streamed"]) == expected
    assert said["stopped"] == text_of(llm(PROMPT, stop=[expected[9]], **given))
    assert len(said["stopped"]) < len(expected)
    assert len(said["streamed"]) > 5


def test_langchains_chat_model(run: Callable[[str], Any], llm: Llama) -> None:
    pytest.importorskip("langchain_community")
    said = run(
        USER
        + """
from langchain_community.chat_models import ChatLlamaCpp
given = dict(model_path=path, n_ctx=1024, n_threads=1, rope_freq_base=0, verbose=False)
turns = [("system", "be brief"), ("human", "and why")]
llm = ChatLlamaCpp(temperature=0, max_tokens=20, **given)
said["invoked"] = llm.invoke(turns).content
said["streamed"] = [piece.content for piece in llm.stream(turns)]
said["whole"] = ChatLlamaCpp(temperature=0, max_tokens=20, streaming=False, **given).invoke(turns).content
caller = ChatLlamaCpp(temperature=0, max_tokens=300, **given).bind_tools([User], tool_choice="User")
said["calls"] = caller.invoke(turns).tool_calls
pieces = list(caller.stream(turns))
total = pieces[0]
for piece in pieces[1:]:
    total += piece
said["streamed calls"] = total.tool_calls
author = ChatLlamaCpp(temperature=1.5, max_tokens=300, **given).with_structured_output(User)
said["user"] = author.invoke(turns).model_dump()
"""
    )
    given: dict[str, Any] = {"temperature": 0, "max_tokens": 20, "repeat_penalty": 1.1}
    expected = llm.create_chat_completion(TURNS, **given)["choices"][0]["message"]["content"]
    assert said["invoked"] == said["whole"] == "".join(said["streamed"]) == expected
    assert len(said["streamed"]) > 5
    (call,) = said["calls"]
    assert call["name"] == "User"
    check_user(call["args"])
    assert [(c["name"], c["args"]) for c in said["streamed calls"]] == [("User", call["args"])]
    check_user(said["user"])


def test_langchains_embeddings(run: Callable[[str], Any], path: Path) -> None:
    pytest.importorskip("langchain_community")
    said = run("""
from langchain_community.embeddings import LlamaCppEmbeddings
made = LlamaCppEmbeddings(model_path=path, n_ctx=1024, n_threads=1, verbose=False)
said["query"] = made.embed_query("the thing")
said["documents"] = made.embed_documents(["the thing", "and the ring"])
""")
    with Llama(path, n_ctx=1024, n_threads=1, embedding=True) as llm:
        data = llm.create_embedding(["the thing", "and the ring"])["data"]
    # A model without pooling has a row for each token; the adapter gives the rows, and the first one of a query.
    rows = [row for item in data for row in item["embedding"]]
    assert len(data[0]["embedding"]) > 1
    # Computed twice in the same way; JSON keeps all digits.
    np.testing.assert_array_equal(said["documents"], rows)
    np.testing.assert_array_equal(said["query"], data[0]["embedding"][0])


def test_llama_index(run: Callable[[str], Any], llm: Llama) -> None:
    pytest.importorskip("llama_index.core")
    said = run("""
import llama_cpp
from llama_index.llms.llama_cpp import LlamaCPP
from llama_index.core.llms import ChatMessage
llm = LlamaCPP(
    model_path=path, temperature=0.0, max_new_tokens=20, context_window=1024, verbose=False,
    model_kwargs={"n_threads": 1}, generate_kwargs={"top_k": 7},
    messages_to_prompt=lambda turns: "".join(turn.content for turn in turns), completion_to_prompt=lambda text: text,
)
said["completed"] = llm.complete("the thing").text
said["streamed"] = [piece.delta for piece in llm.stream_complete("the thing")]
said["chat"] = llm.chat([ChatMessage(role="user", content="the thing")]).message.content
said["window"] = llm.metadata.context_window
""")
    expected = text_of(llm(PROMPT, temperature=0, max_tokens=20, top_k=7))
    assert said["completed"] == "".join(said["streamed"]) == said["chat"] == expected
    assert len(said["streamed"]) > 5
    assert said["window"] == 1024


@pytest.mark.parametrize("mode", ["JSON_SCHEMA", "TOOLS"])
def test_instructor(mode: str, run: Callable[[str], Any]) -> None:
    pytest.importorskip("instructor")
    said = run(
        USER
        + f"""
import instructor
import llama_cpp
llm = llama_cpp.Llama(path, n_ctx=2048, n_threads=1, verbose=False)
create = instructor.patch(create=llm.create_chat_completion_openai_v1, mode=instructor.Mode.{mode})
turns = [{{"role": "user", "content": "Jason is 30"}}]
for seed in range(3):
    user = create(messages=turns, response_model=User, max_retries=0, max_tokens=400, temperature=1.5, seed=seed)
    assert isinstance(user, User)  # instructor's own subclass of it
    said[seed] = user.model_dump()
"""
    )
    assert len(said) == 3
    for user in said.values():
        check_user(user)
    assert len({json.dumps(user) for user in said.values()}) > 1  # the model chose, the grammar guided


def test_it_refuses_where_the_real_one_is_imported_already(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("Llama = None\n", encoding="utf-8")
    program = "import llama_cpp, pysa.llama\npysa.llama.install_as_llama_cpp()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=False, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 1
    assert f"llama_cpp: it is imported already, from {tmp_path / 'llama_cpp.py'}" in done.stderr
    assert "call install_as_llama_cpp() first" in done.stderr


def test_names_and_modules(run: Callable[[str], Any]) -> None:
    said = run("""
import importlib.util
assert pysa.llama.install_as_llama_cpp() is pysa.llama.install_as_llama_cpp()
import llama_cpp
import llama_cpp.llama_chat_format as formats
import llama_cpp.llama_types as types
from llama_cpp import ChatCompletionTool, Llama, LlamaGrammar, LogitsProcessorList
from llama_cpp.llama import Llama as again
from llama_cpp.llama_grammar import LlamaGrammar as grammar
from llama_cpp.llama_cache import LlamaRAMCache
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
said["same"] = [Llama is again is pysa.llama.Llama, LlamaGrammar is grammar, formats.Jinja2ChatFormatter.__module__]
said["found"] = importlib.util.find_spec("llama_cpp") is not None
said["version"] = llama_cpp.__version__
said["type"] = types.ChatCompletionTool is ChatCompletionTool
said["f16"] = llama_cpp.llama_cpp.GGML_TYPE_F16
try:
    llama_cpp.llama_decode
except AttributeError as error:
    said["missing"] = str(error)
""")
    assert said["same"] == [True, True, "pysa.llama.chat_handler"]
    assert said["found"]
    assert said["version"] == "0.3.36"
    assert said["type"]
    assert said["f16"] == 1
    assert said["missing"] == "module 'llama_cpp' has no attribute 'llama_decode': pysa does not have it"
