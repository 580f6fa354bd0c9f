"""Special token ids, whether bos and eos are added, and the chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pysa_convert.architectures.base import KeyValue
from pysa_convert.faults import Faults
from pysa_convert.sources.checkpoint import read_json
from pysa_convert.vocab.base import TokenTable

# name in a checkpoint -> name in the key; `seperator` is GGUF's own spelling
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask"}


def special_ids(
    folder: Path, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], table: TokenTable, faults: Faults
) -> dict[str, int]:
    """Ids by name: the text in tokenizer_config.json first, then config.json's id.

    A text that is no token and an id outside the vocabulary are added to `faults`.
    """
    mapped = read_json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").is_file() else {}
    ids: dict[str, int] = {}
    for name in SPECIAL:
        entry = tokenizer_config.get(f"{name}_token") or mapped.get(f"{name}_token")
        text = entry.get("content") if isinstance(entry, Mapping) else entry
        if isinstance(text, str) and text:
            found = table.id_of(text)
            if found is None:
                faults.add(f"tokenizer_config.json: {name}_token: expected a token of the vocabulary, got {text!r}")
            else:
                ids[name] = found
            continue
        value = config.get(f"{name}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        if type(value) is int and value >= 0:
            if value < len(table.texts):
                ids[name] = value
            else:
                faults.add(f"config.json: {name}_token_id: expected an id below {len(table.texts)}, got {value}")
    return ids


def added_ends(tokenizer: Mapping[str, Any], ids: Mapping[str, int], faults: Faults) -> tuple[bool, bool]:
    """Whether tokenizer.json's post_processor puts bos before and eos after a text."""
    post = tokenizer.get("post_processor")
    if not isinstance(post, Mapping):
        return False, False
    parts = post.get("processors", []) if post.get("type") == "Sequence" else [post]
    before: list[int] = []
    after: list[int] = []
    for part in parts:
        if part.get("type") == "TemplateProcessing":
            target = before
            for item in part.get("single", []):
                if "Sequence" in item:
                    target = after
                else:
                    name = item.get("SpecialToken", {}).get("id")
                    target += part.get("special_tokens", {}).get(name, {}).get("ids", [])
        elif part.get("type") in ("BertProcessing", "RobertaProcessing"):
            before.append(part["cls"][1])
            after.append(part["sep"][1])
    for place, found, name in (("before", before, "bos"), ("after", after, "eos")):
        if found and found != [ids.get(name)]:
            expected = f"{name} {ids.get(name)} alone"
            faults.add(f"tokenizer.json: post_processor: tokens {place} a text: expected {expected}, got {found}")
    return bool(before), bool(after)


def chat_templates(folder: Path, tokenizer_config: Mapping[str, Any], faults: Faults) -> list[KeyValue]:
    """The `tokenizer.chat_template*` keys; a .jinja file stands before tokenizer_config.json, as in transformers."""
    named: dict[str, str] = {}
    raw = tokenizer_config.get("chat_template")
    if raw is None and (folder / "chat_template.json").is_file():
        raw = read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(raw, str):
        named["default"] = raw
    elif isinstance(raw, list):
        for entry in raw:
            if (
                isinstance(entry, Mapping)
                and isinstance(entry.get("name"), str)
                and isinstance(entry.get("template"), str)
            ):
                named[entry["name"]] = entry["template"]
            else:
                faults.add(f"tokenizer_config.json: chat_template: expected a name and a template, got {entry!r:.80}")
    elif raw is not None:
        faults.add(f"tokenizer_config.json: chat_template: expected a string or a list, got {type(raw).__name__}")
    files = [("default", folder / "chat_template.jinja")]
    files += [(path.stem, path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for name, path in files:
        if path.is_file():
            named[name] = path.read_text(encoding="utf-8")
    keys: list[KeyValue] = []
    others = sorted(name for name in named if name != "default")
    if others:
        keys.append(("tokenizer.chat_templates", "string[]", others))
        keys += [(f"tokenizer.chat_template.{name}", "string", named[name]) for name in others]
    if "default" in named:
        keys.append(("tokenizer.chat_template", "string", named["default"]))
    return keys
