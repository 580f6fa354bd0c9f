"""The way of a conversion on one screen: source -> keys and tensors -> plan -> write -> prove -> rename."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType

from pysa.errors import ConvertError, UnsupportedModelError
from pysa.plan import KEY_PREFIX, PRUNED_KEY, Plan
from pysa_convert import plans
from pysa_convert.architectures import BY_CLASS, SUPPORTED
from pysa_convert.architectures.base import Architecture, Dims, map_tensors, read_dims, rope_factors
from pysa_convert.container import Key, encode_key
from pysa_convert.faults import Faults
from pysa_convert.gguf_copy import copy_bytes, copy_gguf, kept_keys, plan_keys
from pysa_convert.keys import FILE_TYPES, general_keys, model_keys, read_rope
from pysa_convert.prove import prove_file, prove_vocabulary
from pysa_convert.prune import NOTE, pruned_names
from pysa_convert.quantize_worker import quantize
from pysa_convert.report import UNMEASURED, Report
from pysa_convert.sources import hub
from pysa_convert.sources.checkpoint import Checkpoint
from pysa_convert.sources.gguf import GgufSource, require_gguf
from pysa_convert.tensors import ArrayTensor, RowChunkTensor
from pysa_convert.vocab.detect import read_vocabulary
from pysa_convert.writer import OutTensor, atomic_output, check_free, check_target, file_bytes, write_gguf

FLOATS = {int(GGMLQuantizationType.F32), int(GGMLQuantizationType.F16), int(GGMLQuantizationType.BF16)}
STOCK_DTYPES = {"BF16": "bf16", "F16": "f16"}


@dataclass(frozen=True)
class Options:
    """One conversion as asked for; `outtype` None keeps a GGUF as it is and means f16 for a checkpoint."""

    model: str
    output: Path | None = None
    outtype: str | None = None
    sharing: plans.PlanOptions = field(default_factory=plans.PlanOptions)
    prune: bool = False
    strip: bool = False
    force: bool = False
    dry_run: bool = False
    pre: str | None = None
    n_threads: int = 0
    quiet: bool = True


def run(options: Options) -> Report:
    """Converts; returns what was written, or would be with `dry_run`.

    Raises:
        PysaError: nothing was written.
    """
    plans.check_options(options.sharing)
    if options.strip and (options.sharing.method != "none" or options.prune):
        raise plans.UsageError("--strip removes the plan: expected no --share, --plan or --prune beside it")
    if options.prune and options.sharing.method == "none":
        raise plans.UsageError("--prune needs a plan without a window, for example --share sa --layers 23-26")
    path = Path(options.model)
    if path.is_file() and path.suffix != ".gguf":
        raise ConvertError(f"{path}: expected a checkpoint's folder or a .gguf file")
    if path.suffix == ".gguf" and not path.is_dir():
        return _convert_gguf(options, require_gguf(path))
    if path.is_dir():
        return _convert_checkpoint(options, Checkpoint(path), path.resolve().name)
    if not hub.is_hub_id(options.model):
        raise ConvertError(f"{options.model}: no such folder or file, and no hub id like organisation/name")
    return _convert_checkpoint(options, Checkpoint(hub.fetch(options.model, options.quiet)), path.name)


def _convert_checkpoint(options: Options, checkpoint: Checkpoint, name: str) -> Report:
    if options.strip:
        raise plans.UsageError("--strip: expected a GGUF, got a checkpoint, which has no plan")
    outtype = options.outtype or "f16"
    base_type = outtype if outtype in FILE_TYPES else _stock_type(checkpoint)
    row = find_row(checkpoint)
    faults = Faults(str(checkpoint.folder))
    config = checkpoint.config
    dims = read_dims(config, faults)
    keys = model_keys(row, dims, config, faults)
    mapped = map_tensors(row, dims, config, checkpoint.tensors, faults)
    vocabulary = read_vocabulary(checkpoint.folder, config, dims.n_vocab, options.pre, faults)
    faults.raise_if_any()
    plan = plans.build_plan(options.sharing, dims)
    dropped = pruned_names(plan) if options.prune else frozenset[str]()

    tensors: list[OutTensor] = [RowChunkTensor.of(tensor, base_type) for tensor in mapped]
    rope = read_rope(row, config, faults)
    if rope["rope_type"] == "llama3":
        tensors.insert(1, ArrayTensor("rope_freqs.weight", rope_factors(rope, dims.head_dim)))
    n_params = sum(_n_values(tensor.shape) for tensor in tensors)
    if outtype in FILE_TYPES:
        tensors = [tensor for tensor in tensors if tensor.name not in dropped]
    head = [encode_key(*key) for key in (*general_keys(row, name, base_type, n_params), *keys, *vocabulary.keys)]
    head += plan_keys(plan, pruned=bool(dropped) and outtype in FILE_TYPES)
    size_bytes = file_bytes(head, tensors)

    target = options.output or Path(f"{name}-{outtype}.gguf")
    report = Report(options.model, target, row.name, outtype, dims, plan, len(tensors), size_bytes)
    report.vocabulary = f"{vocabulary.kind} ({vocabulary.pre})" if vocabulary.kind == "gpt2" else vocabulary.kind
    report.notes = _notes(options, dims, config) + vocabulary.notes
    report.size_bytes = size_bytes if outtype in FILE_TYPES else None
    if options.dry_run:
        check_target(target, options.force)
        return report
    with atomic_output(target, options.force, size_bytes) as temporary:
        if outtype in FILE_TYPES:
            write_gguf(temporary, head, tensors, quiet=options.quiet)
        else:
            with _beside(temporary, "base", size_bytes) as base:
                write_gguf(base, head, tensors, quiet=options.quiet)
                _quantize(options, base, temporary, outtype, plan, dropped)
        prove_file(temporary, plan, dims)
        report.n_ids_compared = prove_vocabulary(temporary, vocabulary)
        report.n_tensors, report.size_bytes = len(GgufSource(temporary).tensors), temporary.stat().st_size
    report.written = True
    return report


def _convert_gguf(options: Options, source: GgufSource) -> Report:
    sharing = options.sharing
    if options.pre:
        raise plans.UsageError("--pre: expected a checkpoint; a GGUF's vocabulary is copied as it is")
    if sharing.share is None and sharing.plan is None and not options.strip and options.outtype is None:
        raise plans.UsageError("nothing to do: expected --share, --plan, --strip or --outtype for a GGUF")
    dims = source.dims()
    plan_stays = sharing.method == "none" and not options.strip and sharing.share is None
    old = Plan.from_keys(source.values, dims.n_layer, dims.n_head) if plan_stays else None
    plan = old if plan_stays else plans.build_plan(sharing, dims)
    if source.values.get(PRUNED_KEY) and not plan_stays:
        raise ConvertError(
            f"{source.path}: a pruned file lacks the weights that another plan needs; convert the original"
        )
    dropped = pruned_names(plan) if options.prune else frozenset[str]()
    if options.prune and any(tensor.name.endswith("attn_qkv.weight") for tensor in source.tensors):
        raise UnsupportedModelError(f"{source.path}: --prune: expected q, k and v apart, got them in one tensor")
    if options.outtype:
        _require_floats(source, options.outtype)
    head = kept_keys(source, plan_stays) + ([] if plan_stays else plan_keys(plan, pruned=bool(dropped)))
    size_bytes = copy_bytes(source, head, dropped)

    suffix = options.outtype or ("dense" if plan is None else plan.method)
    target = options.output or Path(f"{source.path.stem}-{suffix}.gguf")
    n_tensors = sum(tensor.name not in dropped for tensor in source.tensors)
    report = Report(
        options.model, target, source.arch, options.outtype or "as it is", dims, plan, n_tensors, size_bytes
    )
    report.notes = _notes(options, dims, {})
    report.size_bytes = None if options.outtype else size_bytes
    if options.dry_run:
        check_target(target, options.force)
        return report
    with atomic_output(target, options.force, size_bytes) as temporary:
        if options.outtype is None:
            copy_gguf(source, temporary, head, dropped=dropped, quiet=options.quiet)
        else:
            with _beside(temporary, "quantised", size_bytes) as quantised:
                quantize(source.path, quantised, options.outtype, options.n_threads)
                between = GgufSource(quantised)
                kept = kept_keys(between, plan_stays) + ([] if plan_stays else plan_keys(plan, pruned=bool(dropped)))
                copy_gguf(between, temporary, kept, dropped=dropped, quiet=options.quiet)
        prove_file(temporary, plan, dims)
        report.size_bytes = temporary.stat().st_size
    report.written = True
    return report


def find_row(checkpoint: Checkpoint) -> Architecture:
    """The row of a checkpoint's class; UnsupportedModelError names the classes there are."""
    row = BY_CLASS.get(checkpoint.architecture)
    if row is None:
        expected = ", ".join(BY_CLASS)
        where = checkpoint.folder / "config.json"
        raise UnsupportedModelError(
            f"{where}: architectures: {checkpoint.architecture} is not supported: expected one of {expected} "
            f"(GGUF: {', '.join(SUPPORTED)})"
        )
    return row


def _quantize(
    options: Options, base: Path, target: Path, outtype: str, plan: Plan | None, dropped: frozenset[str]
) -> None:
    """Quantises `base` to `target` with libllama; puts `pysa.*` back where it got lost, then drops `dropped`."""
    with _beside(target, "quantised", 0) as quantised:
        quantize(base, quantised, outtype, options.n_threads)
        between = GgufSource(quantised)
        wanted = {key.name: key.raw for key in plan_keys(plan)}
        found = {key.name: key.raw for key in between.keys if key.name.startswith(KEY_PREFIX)}
        if found == wanted and not dropped:
            quantised.replace(target)
        else:
            head: list[Key] = kept_keys(between) + plan_keys(plan, pruned=bool(dropped))
            copy_gguf(between, target, head, dropped=dropped, quiet=options.quiet)


@contextlib.contextmanager
def _beside(temporary: Path, what: str, n_bytes: int) -> Iterator[Path]:
    """A second temporary file, gone afterwards."""
    check_free(temporary.parent, n_bytes)
    path = temporary.with_name(f"{temporary.name}.{what}")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _stock_type(checkpoint: Checkpoint) -> str:
    """The type that loses nothing on the way to the quantiser."""
    kinds = {tensor.dtype for tensor in checkpoint.tensors.values() if len(tensor.shape) > 1}
    return STOCK_DTYPES.get(next(iter(kinds)), "f32") if len(kinds) == 1 else "f32"


def _require_floats(source: GgufSource, outtype: str) -> None:
    found = sorted({GGMLQuantizationType(tensor.type).name for tensor in source.tensors if tensor.type not in FLOATS})
    if found:
        advice = "quantising twice loses quality: start from an f16, bf16 or f32 file"
        raise ConvertError(
            f"{source.path}: --outtype {outtype}: expected f32, f16 or bf16 tensors, got {found[0]}; {advice}"
        )


def _notes(options: Options, dims: Dims, config: dict[str, Any]) -> list[str]:
    notes = []
    if options.sharing.method in ("sa", "pod", "streaming"):
        notes.append(UNMEASURED)
    if options.prune:
        notes.append(NOTE)
    window = config.get("sliding_window")
    if isinstance(window, int) and window < dims.n_ctx and config.get("use_sliding_window", True):
        notes.append(f"the checkpoint's own sliding window of {window} tokens is not applied, as in llama.cpp")
    return notes


def _n_values(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n
