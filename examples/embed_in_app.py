"""Questions about a text, answered inside an application: no server, memory bounded, the text read once.

python embed_in_app.py model.gguf notes.txt "What did we decide?"
"""

import sys
from pathlib import Path

import pysa


def answer(model, text, question, memory="4G", folder="~/.cache/my-app"):
    n_ctx = min(8192, pysa.fit(model, memory, type_k="q8_0", type_v="q8_0").n_ctx)
    with pysa.Llama(model, n_ctx=n_ctx, type_k="q8_0", type_v="q8_0", cache_dir=folder, verbose=False) as llm:
        asked = [{"role": "user", "content": f"{text}\n\n{question}"}]
        for chunk in llm.create_chat_completion(asked, max_tokens=256, temperature=0.0, stream=True):
            yield chunk["choices"][0]["delta"].get("content") or ""


if __name__ == "__main__":
    for piece in answer(sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8"), sys.argv[3]):
        print(piece, end="", flush=True)
