"""`Llama`: the interface of llama_cpp.Llama over pysa's engine: the constructor. Its parts are the base classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace, TracebackType
from typing import Any

from pysa._arguments import Attention, PathLike, check_bool, check_int, check_path
from pysa._footprint import read_shape
from pysa.llama import arguments as args
from pysa.llama.caches import BaseLlamaCache, LlamaDiskCache
from pysa.llama.completions import Completions
from pysa.llama.context import Context
from pysa.llama.embedding import Embeddings, resolve_pooling
from pysa.llama.evaluation import Evaluation
from pysa.llama.offload import choose_offload
from pysa.llama.pretrained import download
from pysa.llama.tokenizer import text_metadata
from pysa.model import Model
from pysa.plan import Plan
from pysa.prefix_cache import PrefixCache


class Llama(Completions, Embeddings, Evaluation):
    """A model as llama_cpp.Llama has it: the same arguments, methods and results. A context manager; may be pickled.

    docs/binding.md says of every argument what becomes of it. Threads may share it and take turns; of completions that
    are streamed at the same time each has a session of its own.

    Args:
        model_path: the GGUF file.
        n_gpu_layers: so many of the last layers are kept on a GPU, the output counts as one more; -1: as many as fit.
        main_gpu: which of pysa.devices() that is; 0: the best one, or with split_mode=LLAMA_SPLIT_MODE_NONE the first.
        offload_kqv: the cache of layers on the GPU is there too.
        n_ctx: most tokens of a prompt and its answer; 0: as many as the model was trained for.
        n_batch: most tokens of an input of embed().
        n_ubatch: most tokens evaluated at once, with n_batch.
        n_threads: threads of an evaluation; None: the physical cores.
        seed: where the seeds of completions come from that are given none; -1 draws it.
        logits_all: keep the logits of every token, in `scores`.
        last_n_tokens_size: generated tokens that the penalties look at.
        pooling_type: how embeddings are pooled; -1: as the file says, or not at all.
        chat_format: name of a chat template; None: the model's own.
        chat_handler: is called in place of what create_chat_completion does.
        type_k: how keys are kept: ggml's number, or f32, f16, bf16, q8_0, q4_0.
        type_v: how values are kept.
        spm_infill: the suffix comes before the prompt where a gap is filled in.
        plan: what replaces the file's own sharing plan, see Model.session().
        attention: `fused`, `composed` or `auto`.
        v_skip: largest share of a head's distant weights whose values need not be read; None: the engine's choice.
        device: the GPU's name in place of main_gpu, as pysa.devices() has it, or `cpu`.
        cache_dir: folder in which sessions are kept by what they begin with, see pysa.prefix_cache.
        cache_bytes: most bytes in that folder.

    Raises:
        ArgumentError: an argument is out of range, or would change the result in a way pysa does not have.
        ModelFileError: the file is missing, damaged or inconsistent.
        UnsupportedModelError: an architecture that pysa does not have.
        DeviceError: the layers asked for do not fit into the GPU's memory, or there is no such device.
    """

    _n_sessions = 1  # that are full at once, when it is estimated how many layers fit on a GPU

    def __init__(
        self,
        model_path: PathLike,
        *,
        n_gpu_layers: int = 0,
        split_mode: int = args.LLAMA_SPLIT_MODE_LAYER,
        main_gpu: int = 0,
        tensor_split: Sequence[float] | None = None,
        vocab_only: bool = False,
        use_mmap: bool = True,
        use_mlock: bool = False,
        kv_overrides: Mapping[str, Any] | None = None,
        seed: int = args.LLAMA_DEFAULT_SEED,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        rope_scaling_type: int | None = args.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED,
        pooling_type: int = args.LLAMA_POOLING_TYPE_UNSPECIFIED,
        attention_type: int = args.LLAMA_ATTENTION_TYPE_UNSPECIFIED,
        rope_freq_base: float = 0.0,
        rope_freq_scale: float = 0.0,
        yarn_ext_factor: float = -1.0,
        yarn_attn_factor: float = 1.0,
        yarn_beta_fast: float = 32.0,
        yarn_beta_slow: float = 1.0,
        yarn_orig_ctx: int = 0,
        logits_all: bool = False,
        embedding: bool = False,
        offload_kqv: bool = True,
        flash_attn: bool = False,
        op_offload: bool | None = None,
        swa_full: bool | None = None,
        no_perf: bool = False,
        last_n_tokens_size: int = 64,
        lora_base: str | None = None,
        lora_scale: float = 1.0,
        lora_path: str | None = None,
        numa: bool | int = False,
        chat_format: str | None = None,
        chat_handler: Any = None,
        draft_model: Any = None,
        tokenizer: Any = None,
        type_k: int | str | None = None,
        type_v: int | str | None = None,
        spm_infill: bool = False,
        verbose: bool = True,
        plan: Plan | Mapping[str, Any] | PathLike | None = None,
        attention: Attention = "auto",
        v_skip: float | None = None,
        device: str | None = None,
        cache_dir: PathLike | None = None,
        cache_bytes: int = 4 << 30,
        **kwargs: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        offload = choose_offload(n_gpu_layers, main_gpu, split_mode, device)
        args.warn_of_idle(given, kwargs, offload.no_gpu, stacklevel=2)
        self._arguments = given
        self.model_path = check_path("model_path", model_path)
        self.verbose = check_bool("verbose", verbose)
        self.spm_infill = check_bool("spm_infill", spm_infill)
        self.last_n_tokens_size = check_int("last_n_tokens_size", last_n_tokens_size, 0, 1 << 20)
        self.chat_format, self.chat_handler = chat_format, chat_handler
        self.cache: BaseLlamaCache | LlamaDiskCache | None = None
        check_int("n_ctx", n_ctx, 0, 2**31 - 1)
        check_int("n_batch", n_batch, 1, 2**31 - 1)
        check_int("n_ubatch", n_ubatch, 1, 2**31 - 1)
        seed = args.first_seed(seed)
        kinds: dict[str, Any] = {
            "type_k": args.cache_type("type_k", type_k),
            "type_v": args.cache_type("type_v", type_v),
        }

        kinds["kv_offload"] = check_bool("offload_kqv", offload_kqv)
        model = Model(
            self.model_path,
            args.thread_count(n_threads),
            use_mmap,
            use_repack=not check_bool("vocab_only", vocab_only),
            device=offload.device,
            n_gpu_layers=0 if vocab_only else offload.n_gpu_layers,
            n_ctx=self._n_ctx_of_all(n_ctx, offload.n_gpu_layers),
            n_ubatch=min(n_batch, n_ubatch, 65536),
            **kinds,
        )
        metadata = model.metadata
        args.check_refused(given, metadata, self.model_path)
        self.n_batch = min(n_batch, n_ctx or model.n_ctx_train)
        self.n_threads = model.n_threads
        self.metadata = text_metadata(model)
        self._pooling = resolve_pooling(pooling_type, metadata)
        self._disk = None if cache_dir is None else PrefixCache(cache_dir, cache_bytes)

        def open_context() -> Context:
            session = model.session(
                n_ctx,
                n_ubatch=min(self.n_batch, n_ubatch, 65536),
                attention=attention,
                plan=plan,
                v_skip=v_skip,
                **kinds,
            )
            return Context(session, session.n_ubatch, check_bool("logits_all", logits_all), self._disk)

        super().__init__(model, None if vocab_only else open_context, seed)

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<pysa.Llama {self.model_path!r}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**self._arguments, "chat_format": self.chat_format, "chat_handler": self.chat_handler}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _n_ctx_of_all(self, n_ctx: int, n_gpu_layers: int) -> int:
        """Tokens of all sessions together, for the estimate of how many layers fit; 0: the model's own length."""
        if self._n_sessions > 1 and n_ctx == 0 and n_gpu_layers == -1:
            n_ctx = read_shape(self.model_path)[0].n_ctx_train
        return min(n_ctx * self._n_sessions, 2**31 - 1)

    @property
    def context_params(self) -> SimpleNamespace:
        """What of llama_cpp.Llama's `context_params` is known here: n_ctx, n_batch, n_threads."""
        return SimpleNamespace(n_ctx=self.n_ctx(), n_batch=self.n_batch, n_threads=self.n_threads)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        additional_files: Sequence[str] | None = None,
        local_dir: PathLike | None = None,
        local_dir_use_symlinks: bool | str = "auto",
        cache_dir: PathLike | None = None,
        *,
        session_cache_dir: PathLike | None = None,
        **kwargs: Any,
    ) -> Llama:
        """Opens a model of the Hugging Face hub, downloading it if it is not there yet.

        Args:
            repo_id: `owner/name`.
            filename: its name in the repository, or a pattern with *, ? or [] that fits one file.
            additional_files: names or patterns of more files to download.
            local_dir: where to put them; None: the hub's own cache.
            local_dir_use_symlinks: has no effect, as in the hub's own package.
            cache_dir: another folder for the hub's cache; the constructor's is `session_cache_dir` here.
            session_cache_dir: the constructor's cache_dir.
            kwargs: the constructor's other arguments.

        Raises:
            ImportError: huggingface_hub is not installed.
            ArgumentError: no file or several fit the pattern.
        """
        path = download(repo_id, filename, additional_files, local_dir, cache_dir)
        return cls(path, cache_dir=session_cache_dir, **kwargs)
