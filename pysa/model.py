"""`pysa.Model`: an opened GGUF. A thin, checked wrapper of the native model; sessions are made here.

The engine itself, the vocabulary and the cache's formula live in native/.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from pysa import _native
from pysa._arguments import (
    ATTENTIONS,
    CACHE_TYPES,
    Attention,
    CacheType,
    PathLike,
    Tokens,
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_path,
    check_text,
    check_tokens,
)
from pysa.device import check_device, say_if_cpu
from pysa.errors import ArgumentError, PlanError
from pysa.plan import Plan
from pysa.session import Session

INT32_MAX = 2**31 - 1
DISTANT_BUDGET_BYTES = 256 << 20


class Model:
    """A GGUF model, ready for sessions. Immutable; threads and sessions share it. A context manager.

    Args:
        path: the GGUF file.
        n_threads: threads of an evaluation, 1..512; 0 takes the physical cores.
        use_mmap: map the weights instead of reading them; the file must then stay as it is.
        use_repack: copy weights into the processor's own layout where that is faster; off, loading is quicker.
        device: a GPU's name, as devices() has it; `auto`, the best one there is, or the CPU without any; or `cpu`.
        n_gpu_layers: so many of the last layers are kept on the GPU, the output counts as one more; 0: none; -1: as
            many as fit beside the cache that the next arguments describe.
        n_ctx: tokens of the sessions to come, together; 0: one session of the model's own length.
        type_k: how their keys are kept.
        type_v: how their values are kept.
        n_ubatch: tokens of a prompt that they evaluate at once.
        kv_offload: whether their caches are to be on the GPU too.

    Raises:
        ModelFileError: the file is missing, damaged or inconsistent; every fault is named.
        UnsupportedModelError: a sound file of an architecture or with a feature that pysa does not have.
        PlanError: the file's sharing plan breaks a rule of docs/format.md.
        ArgumentError: an argument is of the wrong type or out of range.
        DeviceError: there is no such GPU, or the layers asked for do not fit into its memory.
    """

    def __init__(
        self,
        path: PathLike,
        n_threads: int = 0,
        use_mmap: bool = True,
        *,
        use_repack: bool = True,
        device: str = "auto",
        n_gpu_layers: int = -1,
        n_ctx: int = 0,
        type_k: CacheType = "f16",
        type_v: CacheType = "f16",
        n_ubatch: int = 512,
        kv_offload: bool = True,
    ) -> None:
        threads = check_int("n_threads", n_threads, 0, 512)
        mmap, repack = check_bool("use_mmap", use_mmap), check_bool("use_repack", use_repack)
        n_layers = check_int("n_gpu_layers", n_gpu_layers, -1, INT32_MAX)
        cache = (
            check_int("n_ctx", n_ctx, 0, INT32_MAX),
            check_choice("type_k", type_k, CACHE_TYPES),
            check_choice("type_v", type_v, CACHE_TYPES),
            check_int("n_ubatch", n_ubatch, 1, 65536),
            check_bool("kv_offload", kv_offload),
        )
        self._path = check_path("path", path)
        device = check_device(device)
        self._model: _native.Model | None = _native.Model(self._path, threads, mmap, repack, device, n_layers, *cache)
        say_if_cpu(self._path, device, n_layers, self._model.n_gpu_layers)
        self._metadata: dict[str, Any] | None = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._model is None else f"{self.arch}, {self.n_layer} layers, {self.n_head} heads"
        return f"<pysa.Model {self._path!r}: {state}>"

    @property
    def native(self) -> _native.Model:
        """The engine's own model; for pysa's own modules."""
        if self._model is None:
            raise ArgumentError(f"{self._path}: the model is closed: expected an open model; open it again")
        return self._model

    @property
    def path(self) -> str:
        """The file it was opened from."""
        return self._path

    @property
    def arch(self) -> str:
        """`general.architecture`, e.g. `llama`."""
        return self.native.arch

    @property
    def n_layer(self) -> int:
        """Layers."""
        return self.native.n_layer

    @property
    def n_head(self) -> int:
        """Query heads of a layer."""
        return self.native.n_head

    @property
    def n_head_kv(self) -> int:
        """Key/value heads of a layer; n_head / n_head_kv query heads share one."""
        return self.native.n_head_kv

    @property
    def n_embd(self) -> int:
        """Width of the residual stream."""
        return self.native.n_embd

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary; ids are 0..n_vocab - 1."""
        return self.native.n_vocab

    @property
    def n_ctx_train(self) -> int:
        """The context the model was trained for, in tokens."""
        return self.native.n_ctx_train

    @property
    def n_threads(self) -> int:
        """Threads of an evaluation."""
        return self.native.n_threads

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        return self.native.size_bytes

    @property
    def device(self) -> str:
        """The GPU that layers are on, as devices() has it; `cpu` if none is."""
        return self.native.device

    @property
    def n_gpu_layers(self) -> int:
        """How many of the last layers are on the GPU; n_layer + 1 with the output: all of them."""
        return self.native.n_gpu_layers

    @property
    def device_bytes(self) -> int:
        """Bytes of the weights on the GPU."""
        return self.native.device_bytes

    @property
    def metadata(self) -> dict[str, Any]:
        """The file's keys and values, `pysa.*` among them; arrays are lists."""
        if self._metadata is None:
            self._metadata = _native.gguf_read(self._path)["metadata"]
        return dict(self._metadata)

    @property
    def plan(self) -> Plan | None:
        """The sharing plan as the file has it, `enabled` or not; None if it has none."""
        # The engine has checked it; the keys hold what was measured besides.
        return Plan.from_keys(self.metadata, self.n_layer, self.n_head) if self.native.plan is not None else None

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Text to token ids.

        Args:
            text: any text; it need not end at a word.
            add_special: add the tokens the model expects around a text, a leading BOS for instance.
            parse_special: read special tokens written out in the text, such as `<|im_end|>`; off, they are plain text.

        Returns:
            Token ids; empty for an empty text without special tokens.

        Raises:
            ArgumentError: no str, or text that UTF-8 cannot hold.
        """
        text = check_text("text", text)
        add, parse = check_bool("add_special", add_special), check_bool("parse_special", parse_special)
        return self.native.vocab.tokenize(text, add, parse)

    def detokenize(self, tokens: Tokens, special: bool = False) -> str:
        """Token ids to text; bytes that are no UTF-8 become U+FFFD.

        Args:
            tokens: ids, (n_tokens,); none at all gives "".
            special: write special tokens out instead of leaving them out.

        Raises:
            ArgumentError: an id that is no integer or out of range.
        """
        ids = check_tokens(tokens, self.n_vocab, allow_empty=True)
        return self.native.vocab.detokenize(ids.tolist(), check_bool("special", special)).decode("utf-8", "replace")

    def token_to_piece(self, token: int, special: bool = False) -> bytes:
        """The bytes one token adds to a text; a character may be spread over several tokens."""
        token = check_int("token", token, 0, self.n_vocab - 1)
        return self.native.vocab.token_to_piece(token, check_bool("special", special))

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation (end of text, end of turn)."""
        return self.native.vocab.is_eog(check_int("token", token, 0, self.n_vocab - 1))

    def session(
        self,
        n_ctx: int = 0,
        type_k: CacheType = "f16",
        type_v: CacheType = "f16",
        n_ubatch: int = 512,
        attention: Attention = "auto",
        plan: Plan | Mapping[str, Any] | PathLike | None = None,
        *,
        n_slack: int = 0,
        distant_budget_bytes: int = 0,
        v_skip: float | None = None,
        kv_offload: bool = True,
    ) -> Session:
        """Starts a conversation with an empty cache.

        Args:
            n_ctx: most tokens it can hold; 0 takes the model's own length. Memory grows with the tokens held.
            type_k: how keys are kept: f32, f16, bf16, q8_0 or q4_0.
            type_v: how values are kept.
            n_ubatch: most tokens of a prompt evaluated at once, 1..65536.
            attention: `fused` (quick; on a GPU, where there are kernels for it), `composed` (stock ggml operations, the
                reference) or `auto`.
            plan: what replaces the file's own plan: a Plan, plan.json's dict, a path to a plan.json, or "dense".
            n_slack: window rows kept beyond the need: so many tokens can always be truncated without work.
            distant_budget_bytes: room for the distant scores that layers share while a prompt is evaluated: n_ubatch
                shrinks to fit it as the context grows; 0 is 256 MiB.
            v_skip: largest share of a head's distant weights whose values need not be read, from 0, which is exact, to
                below 1; None is the engine's own choice, Session.v_skip. Session.skip_report() tells what came of it.
                `composed` attention leaves nothing out.
            kv_offload: the cache of layers on the GPU is there too; off, it stays with the CPU, which then computes the
                attention. Session.first_gpu_layer tells what came of it.

        Raises:
            ArgumentError: an argument is of the wrong type or out of range.
            PlanError: the plan does not fit the model; every fault is named.
            DeviceError: not enough memory, or no kernels for `fused` attention on the GPU.
        """
        offload = check_bool("kv_offload", kv_offload)
        native = self.native.session(
            check_int("n_ctx", n_ctx, 0, INT32_MAX),
            check_choice("type_k", type_k, CACHE_TYPES),
            check_choice("type_v", type_v, CACHE_TYPES),
            check_int("n_ubatch", n_ubatch, 1, 65536),
            check_choice("attention", attention, ATTENTIONS),
            self._plan_json(plan),
            check_int("n_slack", n_slack, 0, INT32_MAX),
            check_int("distant_budget_bytes", distant_budget_bytes, 0, 2**62) or DISTANT_BUDGET_BYTES,
            None if v_skip is None else check_float("v_skip", v_skip, 0.0, 1.0),
            offload,
        )
        return Session(self, native, offload)

    def load_session(self, path: PathLike, kv_offload: bool = True) -> Session:
        """Continues a conversation from a file of Session.save.

        Args:
            path: the file.
            kv_offload: as for session(); the file does not say where the cache was.

        Raises:
            ArgumentError: an argument is of the wrong type.
            StateFileError: the file is damaged, of another version, or belongs to another model or plan.
            DeviceError: not enough memory.
        """
        offload = check_bool("kv_offload", kv_offload)
        return Session(self, self.native.load_session(check_path("path", path), offload), offload)

    def cache_bytes(
        self,
        n: int,
        plan: Plan | Mapping[str, Any] | PathLike | None = None,
        type_k: CacheType = "f16",
        type_v: CacheType = "f16",
    ) -> dict[str, int]:
        """Bytes that `n` tokens take in a session's cache, by part: the formula; Session.memory() has the allocated.

        Args:
            n: tokens held, also beyond n_ctx_train.
            plan: as for session(); None is the file's own.
            type_k: how keys are kept.
            type_v: how values are kept.

        Returns:
            `keys` and `values` (all rows), `window_keys` and `window_values`, their `total`, and `dense`, the total of
            a plan of owners only.
        """
        return self.native.cache_bytes(
            check_int("n", n, 0, INT32_MAX),
            self._plan_json(plan),
            check_choice("type_k", type_k, CACHE_TYPES),
            check_choice("type_v", type_v, CACHE_TYPES),
        )

    def close(self) -> None:
        """Lets the model go. Its sessions keep what they need until they are closed too."""
        self._model = None

    def resolve_plan(self, plan: Plan | Mapping[str, Any] | PathLike | None) -> Plan | None:
        """The Plan that session(plan=...) runs, checked against the model; None: there is none, so dense."""
        if plan is None:
            return self.plan
        if isinstance(plan, str) and plan == "dense":
            return Plan.dense(self.n_layer, self.n_head)
        if isinstance(plan, Plan):
            where = "plan"
        elif isinstance(plan, Mapping):
            plan, where = Plan.from_json(plan), "plan"
        else:
            where = check_path("plan", plan)
            plan = Plan.load(where)
        try:
            plan.validate(self.n_head_kv, self.n_layer, self.n_head)
        except PlanError as error:
            raise PlanError(f"{where}: does not fit {self._path}: {error}") from error
        return plan

    def _plan_json(self, plan: Plan | Mapping[str, Any] | PathLike | None) -> dict[str, Any] | None:
        resolved = None if plan is None else self.resolve_plan(plan)
        return None if resolved is None else resolved.to_json()
