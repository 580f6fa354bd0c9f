"""The two models of a run: the one that learns, with the plan's attention, and the dense one that it learns from."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pysa.errors import DeviceError
from pysa.plan import Plan
from pysa_convert.adapt.settings import AdaptError, Settings
from pysa_convert.adapt.shared_attention import Sharing, share_attention
from pysa_convert.sources.checkpoint import Checkpoint

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Place:
    """Where and in which type the matrix products are done."""

    device: torch.device
    dtype: torch.dtype

    def products(self) -> Any:
        """The context of a forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def find_place(settings: Settings) -> Place:
    """The device and type that the settings ask for.

    Raises:
        DeviceError: there is no such device.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"--device {name}: not to be had: {str(error).splitlines()[0]}") from error
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # scores in TF32: 10 bits, where bf16 has 7
    elif settings.n_threads:
        torch.set_num_threads(settings.n_threads)
    is_bf16 = settings.dtype == "bf16" or (settings.dtype == "auto" and device.type == "cuda")
    return Place(device, torch.bfloat16 if is_bf16 else torch.float32)


class Learner:
    """The model that is trained.

    Attributes:
        model: the transformers model, with adapters inside if LoRA is used.
        sharing: the switch of its attention.
        trained: the parameters that change, by name.
    """

    def __init__(self, checkpoint: Checkpoint, plan: Plan | None, settings: Settings, place: Place) -> None:
        keep_bf16 = bool(settings.lora) and place.dtype == torch.bfloat16
        self.model = _load(checkpoint, torch.bfloat16 if keep_bf16 else torch.float32, place)
        self.sharing: Sharing = share_attention(self.model, plan)
        self.wrapped: Any = _with_lora(self.model, settings.lora, settings.seed) if settings.lora else None
        if settings.checkpointing:
            enable = getattr(self.model, "activation_checkpointing_enable", None) or (
                self.model.gradient_checkpointing_enable
            )
            enable({"use_reentrant": False})
        self.model.train()
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def hidden(self, ids: Tensor) -> Tensor:
        """(n_rows, n_tokens, n_embd), what the head turns into logits."""
        out: Tensor = self.model.model(input_ids=ids).last_hidden_state
        return out

    @property
    def head(self) -> torch.nn.Linear:
        """From hidden states to logits."""
        head: torch.nn.Linear = self.model.lm_head
        return head

    def merged(self) -> dict[str, Tensor]:
        """The weights under the checkpoint's names, adapters merged. The learner is done with afterwards."""
        if self.wrapped is not None:
            self.model = self.wrapped.merge_and_unload()
        return dict(self.model.state_dict())


class Teacher:
    """The dense model before training; with LoRA it is the learner itself without its adapters."""

    def __init__(self, checkpoint: Checkpoint, learner: Learner, place: Place) -> None:
        self._learner = learner if learner.wrapped is not None else None
        if self._learner is None:
            self.model = _load(checkpoint, torch.float32, place).eval().requires_grad_(False)
            share_attention(self.model, None)
        self.head: torch.nn.Linear = learner.head if self._learner is not None else self.model.lm_head

    @torch.no_grad()
    def hidden(self, ids: Tensor) -> Tensor:
        """(n_rows, n_tokens, n_embd)."""
        if self._learner is None:
            out: Tensor = self.model.model(input_ids=ids).last_hidden_state
            return out
        with self._learner.wrapped.disable_adapter(), self._learner.sharing.off():
            return self._learner.hidden(ids)


def _load(checkpoint: Checkpoint, dtype: torch.dtype, place: Place) -> PreTrainedModel:
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder, dtype=dtype, attention_dropout=0.0, local_files_only=True
        )
    except (ValueError, OSError, KeyError) as error:
        raise AdaptError(f"{checkpoint.folder}: transformers cannot load it: {str(error).splitlines()[0]}") from error
    return model.to(place.device)  # type: ignore[no-any-return, arg-type]


def _with_lora(model: PreTrainedModel, rank: int, seed: int) -> Any:
    try:
        import peft  # noqa: PLC0415
    except ImportError as error:
        raise AdaptError("--lora needs peft: pip install 'pysa[adapt]'") from error
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)
