"""The exceptions pysa raises. The native engine raises the same classes by name (native/bindings/module.cpp)."""

from __future__ import annotations


class PysaError(Exception):
    """Base of every error that pysa raises on purpose."""


class ModelFileError(PysaError):
    """A GGUF file or checkpoint is damaged, incomplete or inconsistent."""


class UnsupportedModelError(PysaError):
    """A sound file asks for an architecture or a feature that pysa does not have."""


class PlanError(PysaError):
    """A sharing plan breaks a rule of docs/format.md."""


class ConvertError(PysaError):
    """A conversion cannot be done or did not pass its own checks."""


class ContextFullError(PysaError):
    """The tokens do not fit in the session's context."""


class DeviceError(PysaError):
    """Memory or a compute backend is not to be had, or failed."""


class StateFileError(PysaError):
    """A saved session is damaged or belongs to another model, plan or version."""


class RollbackError(PysaError):
    """A position was asked for whose window rows the ring has overwritten."""


class EvaluationCancelledError(PysaError):
    """The caller's `interrupt` asked to stop; nothing was evaluated."""


class SessionBusyError(PysaError, RuntimeError):
    """A second thread entered a session that is computing."""


class ArgumentError(PysaError, ValueError):
    """A caller passed a value outside its range."""
